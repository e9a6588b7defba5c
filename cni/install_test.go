package cni

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var testOptions = Options{State: "weir", Timeout: "10s", OnTimeout: Fail, NoAgent: Allow}

// dirs makes the two directories, with configurations in the first.
func dirs(t *testing.T, configs map[string]string) (conf, bin, program string) {
	t.Helper()
	conf, bin = t.TempDir(), t.TempDir()
	program = filepath.Join(t.TempDir(), "weir-1.0")
	files := map[string]string{program: "the program"}
	for name, text := range configs {
		files[filepath.Join(conf, name)] = text
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return conf, bin, program
}

func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(text)
	}
	return out
}

func typesOf(t *testing.T, text string) (types []string) {
	t.Helper()
	var l struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, p := range l.Plugins {
		types = append(types, p.Type)
	}
	return types
}

const chain = `{"cniVersion": "1.0.0", "name": "net", "x": {"y": 1e3}, "plugins": [
  {"type": "bridge", "ipam": {"type": "host-local"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}`

func TestInstall(t *testing.T) {
	conf, bin, program := dirs(t, map[string]string{"10-net.conflist": chain, "20-other.conflist": chain, "00-readme.txt": "no"})
	if changed, err := Install(conf, bin, program, testOptions); err != nil || !changed {
		t.Fatal(changed, err)
	}
	now := filesOf(t, conf)
	if got := typesOf(t, now["10-net.conflist"]); !slices.Equal(got, []string{"bridge", "portmap", "weir"}) {
		t.Errorf("the chain is %v", got)
	}
	if now["20-other.conflist"] != chain || len(now) != 3 {
		t.Errorf("other files: %v", slices.Sorted(maps.Keys(now)))
	}
	if got := filesOf(t, bin); got["weir"] != "the program" || len(got) != 1 {
		t.Errorf("programs: %v", got)
	}
	if info, err := os.Stat(filepath.Join(bin, "weir")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info, err)
	}
	if changed, err := Install(conf, bin, program, testOptions); err != nil || changed {
		t.Errorf("again: %v %v", changed, err)
	}
	other := testOptions
	other.NoAgent = Fail
	if changed, err := Install(conf, bin, program, other); err != nil || !changed {
		t.Errorf("with other options: %v %v", changed, err)
	}
	if got := typesOf(t, filesOf(t, conf)["10-net.conflist"]); !slices.Equal(got, []string{"bridge", "portmap", "weir"}) {
		t.Errorf("with other options the chain is %v", got)
	}
	if err := os.WriteFile(program, []byte("a newer one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := Install(conf, bin, program, other); err != nil || !changed || filesOf(t, bin)["weir"] != "a newer one" {
		t.Errorf("another program: %v %v", changed, err)
	}
	for range 2 {
		if err := Uninstall(conf, bin); err != nil {
			t.Fatal(err)
		}
		after := filesOf(t, conf)
		if !sameJSON([]byte(after["10-net.conflist"]), []byte(chain)) || len(after) != 3 || len(filesOf(t, bin)) != 0 {
			t.Errorf("after it: %v, %v", after, filesOf(t, bin))
		}
	}
}

// TestInstallSingle: a configuration of one plugin becomes a list, and comes back.
func TestInstallSingle(t *testing.T) {
	const one = `{"cniVersion":"1.0.0","name":"net","type":"bridge","bridge":"cni0"}`
	conf, bin, program := dirs(t, map[string]string{"10-net.conf": one})
	for range 2 {
		if _, err := Install(conf, bin, program, testOptions); err != nil {
			t.Fatal(err)
		}
		now := filesOf(t, conf)
		if got := typesOf(t, now["10-net.conflist"]); !slices.Equal(got, []string{"bridge", "weir"}) || now["10-net.conf.before-weir"] != one || len(now) != 2 {
			t.Fatalf("%v", now)
		}
	}
	if err := Uninstall(conf, bin); err != nil {
		t.Fatal(err)
	}
	if now := filesOf(t, conf); now["10-net.conf"] != one || len(now) != 1 {
		t.Errorf("after it: %v", now)
	}
}

func TestInstallRefuses(t *testing.T) {
	conf, bin, program := dirs(t, nil)
	if _, err := Install(conf, bin, program, testOptions); !errors.Is(err, ErrNoConfig) || len(filesOf(t, bin)) != 0 {
		t.Errorf("without a configuration: %v", err)
	}
	for name, text := range map[string]string{"no JSON": "{", "no plugin": `{"name":"x"}`, "plugins are no list": `{"plugins":{}}`} {
		conf, bin, program := dirs(t, map[string]string{"1.conflist": text})
		if _, err := Install(conf, bin, program, testOptions); err == nil {
			t.Errorf("%s: no error", name)
		}
		if now := filesOf(t, conf); now["1.conflist"] != text || len(now) != 1 {
			t.Errorf("%s: %v", name, now)
		}
	}
	conf, bin, program = dirs(t, map[string]string{"1.conflist": chain})
	bad := testOptions
	bad.OnTimeout = "maybe"
	if _, err := Install(conf, bin, program, bad); err == nil || filesOf(t, conf)["1.conflist"] != chain {
		t.Errorf("bad options: %v", err)
	}
	if err := Uninstall(filepath.Join(conf, "none"), bin); err != nil {
		t.Errorf("without a directory: %v", err)
	}
}

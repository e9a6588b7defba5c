package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirnet/weir/policy/api"
)

// TestStoriesAreSound reads every story: its lines are understood, its files
// are there and used, and what is wrong in them is meant to be.
func TestStoriesAreSound(t *testing.T) {
	files, err := filepath.Glob("*/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		a := parseArchive(string(text))
		a.files["many.zone"], a.files["big.zone"] = manyNames(), bigNames()
		number, probes := 0, 0
		for line := range strings.Lines(a.text) {
			number++
			w, err := words(line)
			if err == nil && len(w) > 0 && !isCommand(w) {
				probes++
				_, err = new(story).parseProbe(w)
			}
			if err == nil && len(w) > 1 && w[0] == "apply" && a.files[w[1]] == "" || len(w) > 3 && w[0] == "dns" && strings.HasSuffix(w[3], ".zone") && a.files[w[3]] == "" {
				t.Errorf("%s:%d: no file %s", file, number, w[1])
			}
			if err != nil {
				t.Errorf("%s:%d: %v", file, number, err)
			}
		}
		if probes == 0 && filepath.Dir(file) == "stories" {
			t.Errorf("%s asks nothing", file)
		}
		if !strings.HasPrefix(a.text, "# ") {
			t.Errorf("%s does not begin with what it is about", file)
		}
		for name, text := range a.files {
			if strings.HasSuffix(name, ".zone") {
				continue
			}
			objects := api.Read(name, []byte(text))
			bad := len(objects.Errors) > 0
			for _, p := range objects.Policies {
				bad = bad || len(p.Refused) > 0
			}
			if meant := strings.Contains(name, "broken") || strings.Contains(name, "listener"); bad != meant {
				t.Errorf("%s: %s: refused: %v; %v", file, name, bad, objects.Errors)
			}
		}
	}
}

// TestProbesWithoutWeir asks the runner itself: where nothing is enforced,
// everything connects, and every wrong expectation is found.
func TestProbesWithoutWeir(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/no-weir.txtar")
	for _, n := range s.nodes {
		s.started[n.Name] = true
	}
	for _, line := range []string{
		"shop/a tcp shop/b:5432 => ok seen=shop/a",
		"shop/a udp shop/b:53 size=9000 => ok seen=shop/a",
		"shop/a ping shop/b size=3000 => ok",
		"shop/a GET shop/b:80/x?y => 200 seen=shop/a",
		"shop/b POST outside:8080/x size=300000 => 200 seen=host-a",
		"host-a tcp shop/a:7000 => ok",
		"outside GET host-a:30080/ => 200 seen=outside",
		"shop/a tcp shop/b:1 => refused",
		`shop/a GET shop/b:80/ header="X-A: b" host=example.org => 200`,
	} {
		s.check(line)
	}
	for line, want := range map[string]string{
		"shop/a tcp shop/b:5432 => dropped":                 "ok, not dropped",
		"shop/a tcp shop/b:5432 => refused":                 "ok, not refused",
		"shop/a GET shop/b:80/ => 403":                      "200, not 403",
		"shop/a tcp shop/b:1 => ok":                         "refused, not ok",
		"shop/a GET outside:80/ => 200 seen=shop/a":         "the server saw",
		"shop/a tcp shop/c:80 => ok":                        "no place",
		"shop/a tcp shop/b:5432 => ok nonsense=1":           "nothing to check",
		"shop/a shout shop/b:80 => ok":                      "no verb",
		"shop/a tcp shop/b:5432 => ok reason=policy-denied": "no record",
		"apply nothing.yaml":                                "no file",
		"dance":                                             "no such command",
	} {
		w, err := words(line)
		if err == nil {
			err = s.do(w)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, which does not say %q", line, err, want)
		}
	}
}

package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// fakeAgent answers on a state's socket.
type fakeAgent struct {
	told   []string
	status int
	text   string
	delay  time.Duration
}

func (a *fakeAgent) serve(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "weir"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "weir", "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.told = append(a.told, r.Method+" "+r.URL.Path+" "+strings.TrimSpace(string(body)))
		select {
		case <-time.After(a.delay):
		case <-r.Context().Done():
		}
		if a.status != 0 {
			http.Error(w, a.text, a.status)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
}

const podArgs = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=1;K8S_POD_UID=u1"

const before = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"address":"10.0.0.1/24","gateway":"10.0.0.254"},{"address":"fd00::1/64"}],"dns":{},"x":[1, 2]}`

func call(dir, command, args, config string) (ok bool, out string) {
	var b bytes.Buffer
	env := map[string]string{"CNI_COMMAND": command, "CNI_ARGS": args}
	ok = Run(context.Background(), Env{Getenv: func(k string) string { return env[k] }, In: strings.NewReader(config), Out: &b, RunDir: dir})
	return ok, b.String()
}

func withResult(more string) string {
	return `{"cniVersion":"1.0.0","name":"net","type":"weir"` + more + `,"prevResult":` + before + `}`
}

func TestPlugin(t *testing.T) {
	const announced = `POST /pods/announce {"namespace":"shop","name":"web-0","uid":"u1","addresses":["10.0.0.1","fd00::1"]}`
	up, denying, slow := &fakeAgent{}, &fakeAgent{status: 503, text: "no veth"}, &fakeAgent{delay: 5 * time.Second}
	cases := []struct {
		name, command, args, config string
		agent                       *fakeAgent
		ok                          bool
		out                         string // a part of it; of errors with the code
		told                        string
	}{
		{"in force", "ADD", podArgs, withResult(""), up, true, before, announced},
		{"no pod of Kubernetes", "ADD", "", withResult(""), up, true, before, ""},
		{"denied", "ADD", podArgs, withResult(""), denying, false, `"code":11,"msg":"weir: the policy of pod shop/web-0 is not in force: no veth"`, announced},
		{"denied, allowed", "ADD", podArgs, withResult(`,"onTimeout":"allow"`), denying, true, before, announced},
		{"denied, only without an agent allowed", "ADD", podArgs, withResult(`,"noAgent":"allow"`), denying, false, `"code":11`, announced},
		{"too late", "ADD", podArgs, withResult(`,"timeout":"50ms"`), slow, false, `"code":11`, announced},
		{"too late, allowed", "ADD", podArgs, withResult(`,"timeout":"50ms","onTimeout":"allow"`), slow, true, before, announced},
		{"no agent", "ADD", podArgs, withResult(""), nil, false, `no agent answers`, ""},
		{"no agent, allowed", "ADD", podArgs, withResult(`,"noAgent":"allow"`), nil, true, before, ""},
		{"no agent, only late ones allowed", "ADD", podArgs, withResult(`,"onTimeout":"allow"`), nil, false, `"code":11`, ""},
		{"nothing before", "ADD", podArgs, `{"cniVersion":"1.0.0","type":"weir"}`, up, false, `"code":7`, ""},
		{"null before", "ADD", podArgs, `{"cniVersion":"1.0.0","type":"weir","prevResult":null}`, up, false, `"code":7`, ""},
		{"no address", "ADD", podArgs, `{"cniVersion":"1.0.0","type":"weir","prevResult":{}}`, up, false, `"code":7`, ""},
		{"a broken address", "ADD", podArgs, `{"cniVersion":"1.0.0","type":"weir","prevResult":{"ips":[{"address":"10.0.0.1"}]}}`, up, false, `"code":6`, ""},
		{"an old version", "ADD", podArgs, `{"cniVersion":"0.2.0","type":"weir"}`, up, false, `"cniVersion":"1.1.0","code":1`, ""},
		{"no JSON", "ADD", podArgs, `{`, up, false, `"code":6`, ""},
		{"a bad state", "ADD", podArgs, withResult(`,"state":"../x"`), up, false, `"code":7`, ""},
		{"a bad choice", "ADD", podArgs, withResult(`,"onTimeout":"maybe"`), up, false, `"code":7`, ""},
		{"a bad time", "ADD", podArgs, withResult(`,"timeout":"-1s"`), up, false, `"code":7`, ""},
		{"check", "CHECK", podArgs, withResult(""), up, true, "", announced},
		{"check, not in force", "CHECK", podArgs, withResult(`,"onTimeout":"allow"`), denying, false, `"code":11`, announced},
		{"delete", "DEL", podArgs, `{"cniVersion":"1.0.0","type":"weir"}`, up, true, "", `POST /pods/withdraw {"namespace":"shop","name":"web-0","uid":"u1"}`},
		{"delete without an agent", "DEL", podArgs, `{"cniVersion":"1.0.0","type":"weir"}`, nil, true, "", ""},
		{"collect", "GC", "", `{"cniVersion":"1.1.0","type":"weir","cni.dev/valid-attachments":[]}`, nil, true, "", ""},
		{"status", "STATUS", "", `{"cniVersion":"1.1.0","type":"weir"}`, up, true, "", "GET /readyz "},
		{"status, busy", "STATUS", "", `{"cniVersion":"1.1.0","type":"weir"}`, denying, true, "", "GET /readyz "},
		{"status without an agent", "STATUS", "", `{"cniVersion":"1.1.0","type":"weir"}`, nil, false, `"code":50`, ""},
		{"status without an agent, allowed", "STATUS", "", `{"cniVersion":"1.1.0","type":"weir","noAgent":"allow"}`, nil, true, "", ""},
		{"version", "VERSION", "", ``, nil, true, `"supportedVersions":["0.3.0"`, ""},
		{"unknown", "LIST", "", `{"cniVersion":"1.1.0","type":"weir"}`, up, false, `"code":4`, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.agent != nil {
				c.agent.told = nil
				c.agent.serve(t, dir)
			}
			ok, out := call(dir, c.command, c.args, c.config)
			if ok != c.ok || !strings.Contains(out, c.out) || c.out == "" && out != "" {
				t.Errorf("ok %v: %q, want %v and %q", ok, out, c.ok, c.out)
			}
			var told []string
			if c.agent != nil {
				told = c.agent.told
			}
			if want := strings.Split(c.told, "\n"); c.told == "" && len(told) > 0 || c.told != "" && !slices.Equal(told, want) {
				t.Errorf("told %q, want %q", told, c.told)
			}
		})
	}
}

// TestPiecemeal: what comes a byte at a time is read the same, and what ends early
// lets no pod start.
func TestPiecemeal(t *testing.T) {
	dir := t.TempDir()
	(&fakeAgent{}).serve(t, dir)
	env := func(k string) string { return map[string]string{"CNI_COMMAND": "ADD", "CNI_ARGS": podArgs}[k] }
	var b bytes.Buffer
	if !Run(t.Context(), Env{Getenv: env, In: iotest.OneByteReader(strings.NewReader(withResult(""))), Out: &b, RunDir: dir}) || b.String() != before {
		t.Errorf("a byte at a time: %s", b.String())
	}
	text := withResult("")
	for i := range len(text) {
		if ok, out := call(dir, "ADD", podArgs, text[:i]); ok {
			t.Fatalf("%d bytes are enough: %s", i, out)
		}
	}
	if ok, out := call(dir, "ADD", podArgs, strings.Repeat(" ", maxConfig+1)); ok || !strings.Contains(out, `"code":5`) {
		t.Errorf("too long: %s", out)
	}
}

// FuzzPlugin: whatever it is given, the answer is JSON or nothing, and without an
// agent no pod passes that the configuration does not let pass.
func FuzzPlugin(f *testing.F) {
	f.Add("ADD", podArgs, withResult(""))
	f.Add("ADD", podArgs, withResult(`,"noAgent":"allow"`))
	f.Add("DEL", "", `{"cniVersion":"1.0.0"}`)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, command, args, config string) {
		ok, out := call(dir, command, args, config)
		if out != "" && !json.Valid([]byte(out)) {
			t.Fatalf("%q is no JSON", out)
		}
		if ok && command == "ADD" && podOf(args) != nil && !strings.Contains(strings.ToLower(config), "allow") && !strings.Contains(config, `\u`) {
			t.Fatalf("a pod starts: %q", config)
		}
	})
}

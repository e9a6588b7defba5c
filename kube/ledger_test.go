package kube

import (
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/policy/api"
)

// forbid makes the server refuse whatever is asked of resources.
func (f *fakeServer) forbid(plurals ...string) {
	f.with(func() {
		f.refuse = func(r *http.Request) (int, string) {
			for _, p := range plurals {
				if strings.HasSuffix(r.URL.Path, "/"+p) {
					return http.StatusForbidden, "Forbidden"
				}
			}
			return 0, ""
		}
	})
}

// TestForbiddenPolicies: on a node where nothing of a kind of policies is in force,
// all others are enforced without it, and everybody is told; once it can be read it
// counts.
func TestForbiddenPolicies(t *testing.T) {
	for plural, kind := range map[string]string{"networkpolicies": api.KindNetworkPolicy, "ciliumnetworkpolicies": api.KindCiliumPolicy,
		"ciliumclusterwidenetworkpolicies": api.KindClusterwide, "ciliumcidrgroups": api.KindCiliumCIDRGroup} {
		t.Run(kind, func(t *testing.T) {
			var server *fakeServer
			c := followServer(t, func(f *fakeServer) {
				server = f
				f.put("pods", "shop/a", fakePod("10.0.0.1"))
				f.put("networkpolicies", "shop/web", fakePolicy("ingress"))
				f.put("ciliumcidrgroups", "g", map[string]any{"spec": map[string]any{"externalCIDRs": []any{"192.0.2.0/24"}}})
				f.forbid(plural)
			})
			c.soon("it is refused", func() bool { return c.watch(kind).Denied && c.watch("Pod").Known })
			if c.sink.called() > 0 || c.source.Report().Complete || !strings.HasSuffix(c.source.Report().From(), "NOT READ YET") {
				t.Errorf("before it is known what is in force: %s; %+v", c.sink.names(), c.source.Report())
			}
			file := filepath.Join(t.TempDir(), "kinds")
			c.source.Continue(file, false)
			c.soon("others are handed on", func() bool { return strings.Contains(c.sink.names(), "Pod shop/a") })
			r := c.source.Report()
			lags := strings.Join(r.Lags(), "\n")
			if !r.Complete || !c.watch(kind).LeftOut || !strings.HasSuffix(r.From(), "NOT ALL OF IT READ") ||
				!strings.Contains(lags, kind+": NOT ENFORCED") || !strings.Contains(lags, "forbids to list "+plural) || !strings.Contains(lags, `resources: ["`+plural+`"], verbs: ["list"]`) {
				t.Errorf("%+v\n%s", r, lags)
			}
			if text, err := os.ReadFile(file); err != nil || strings.Contains("\n"+string(text), "\n"+kind+"\n") || !strings.Contains(string(text), "Pod\n") {
				t.Errorf("it is noted that %q is in force, %v", text, err)
			}
			server.with(func() { server.refuse = nil })
			c.soon("it is read", func() bool { w := c.watch(kind); return (w.Known || w.Missing) && !w.LeftOut })
			c.sync()
			c.has("CiliumCIDRGroup g, NetworkPolicy shop/web, Pod shop/a")
			if got := c.source.Report().From(); !strings.HasSuffix(got, ", synced") {
				t.Errorf("afterwards: %s", got)
			}
			if text, err := os.ReadFile(file); err != nil || strings.Contains("\n"+string(text), "\n"+kind+"\n") != c.watch(kind).Known {
				t.Errorf("afterwards it is noted that %q is in force, %v", text, err)
			}
		})
	}
}

// TestForbiddenAfterARestart: what is in force is not touched while a kind that it
// was made of can't be read; of one that it was not, nothing is waited for.
func TestForbiddenAfterARestart(t *testing.T) {
	for name, x := range map[string]struct {
		inForce bool
		noted   string // "": no file
		begins  bool
	}{
		"nothing is in force":           {false, "", true},
		"of a machine that started new": {false, "NetworkPolicy\nPod\n", true},
		"all of it":                     {true, "NetworkPolicy\nPod\n", false},
		"not of that kind":              {true, "CiliumNetworkPolicy\nPod\n", true},
		"not known of what":             {true, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "kinds")
			if x.noted != "" {
				if err := os.WriteFile(file, []byte(x.noted), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c := followServer(t, func(f *fakeServer) {
				f.put("pods", "shop/a", fakePod("10.0.0.1"))
				f.forbid("networkpolicies")
			})
			c.source.Continue(file, x.inForce)
			if x.begins {
				c.has("Pod shop/a")
				return
			}
			c.soon("it is refused", func() bool { return c.watch(api.KindNetworkPolicy).Denied })
			time.Sleep(50 * time.Millisecond) // several tries
			if c.sink.called() > 0 || c.source.Report().Complete || c.watch(api.KindNetworkPolicy).LeftOut {
				t.Errorf("handed on: %s; %+v", c.sink.names(), c.source.Report())
			}
			c.server.with(func() { c.server.refuse = nil })
			c.has("Pod shop/a")
			c.sync()
		})
	}
}

// TestForbiddenBasics: without who is who nothing is begun.
func TestForbiddenBasics(t *testing.T) {
	for _, plural := range []string{"pods", "nodes", "namespaces", "services", "endpointslices"} {
		c := followServer(t, func(f *fakeServer) {
			f.put("networkpolicies", "shop/web", fakePolicy("ingress"))
			f.forbid(plural, "ciliumnetworkpolicies")
		})
		c.source.Continue(filepath.Join(t.TempDir(), "kinds"), false)
		c.soon("it is refused", func() bool { return c.watch("CiliumNetworkPolicy").Denied && c.watch("NetworkPolicy").Known })
		time.Sleep(30 * time.Millisecond)
		if c.sink.called() > 0 || c.source.Report().Complete {
			t.Errorf("without %s: %s", plural, c.sink.names())
		}
	}
}

// TestForbiddenLater: a kind that the cluster did not have is as much left out
// where it turns out to be forbidden; what others say goes on to count.
func TestForbiddenLater(t *testing.T) {
	c := followServer(t, func(f *fakeServer) { f.put("pods", "shop/a", fakePod("10.0.0.1")) })
	c.source.Continue(filepath.Join(t.TempDir(), "kinds"), false)
	c.has("Pod shop/a")
	c.sync()
	c.server.forbid("ciliumnetworkpolicies")
	c.soon("it is refused", func() bool { return c.watch(api.KindCiliumPolicy).Denied })
	if r := c.source.Report(); !r.Complete || !c.watch(api.KindCiliumPolicy).LeftOut {
		t.Errorf("%+v", r)
	}
	c.server.put("pods", "shop/a", nil)
	c.has("")
	c.server.with(func() { c.server.refuse = nil })
	c.soon("it is known to be missing", func() bool { w := c.watch(api.KindCiliumPolicy); return w.Missing && !w.LeftOut })
}

// TestPoliciesThatFail: a kind that the API server fails on is tried for a while.
func TestPoliciesThatFail(t *testing.T) {
	o := newOutbox(slog.New(slog.DiscardHandler))
	ok, bad := newInbox("Pod", o), newInbox(api.KindCiliumPolicy, o)
	o.inboxes = []*inbox{ok, bad}
	o.ledger = openLedger(filepath.Join(t.TempDir(), "kinds"), false, o.log)
	ok.keep(map[name]*item{}, "1")
	begins := func() bool { _, complete, news := o.take(); return news && complete }
	if begins() {
		t.Error("a kind that was not answered for yet is left out")
	}
	bad.late(os.ErrDeadlineExceeded)
	if begins() {
		t.Error("a kind that failed once is left out")
	}
	bad.status.Since = time.Now().Add(-leaveOutAfter - time.Second)
	if !begins() || !bad.status.LeftOut {
		t.Errorf("it fails for long: %+v", bad.status)
	}
}

// TestLedgerThatCantBeWritten: a note that is older than what is in force must not
// stay.
func TestLedgerThatCantBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kinds")
	if err := os.WriteFile(path, []byte("Pod\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	l := openLedger(path, true, slog.New(slog.DiscardHandler))
	if l.has("NetworkPolicy") || !l.has("Pod") {
		t.Errorf("%+v", l)
	}
	l.note([]string{"NetworkPolicy", "Pod"})
	if _, err := os.Stat(path); err == nil {
		t.Error("the old note is there")
	}
	if !openLedger(path, true, l.log).has("NetworkPolicy") {
		t.Error("a successor takes nothing to be in force")
	}
	if err := os.Remove(path + ".new"); err != nil {
		t.Fatal(err)
	}
	l.note([]string{"NetworkPolicy", "Pod"})
	if text, err := os.ReadFile(path); err != nil || string(text) != "NetworkPolicy\nPod\n" {
		t.Errorf("%q, %v", text, err)
	}
}

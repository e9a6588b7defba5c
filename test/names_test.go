package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/test/node"
)

// learned leaves in a node's run directory what a proxy before the first one
// learned: names that stand for the outside.
func learned(t *testing.T, n *node.Node, ttl time.Duration, names ...string) {
	t.Helper()
	dir := filepath.Join("/run/weir", n.State)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var files [2]fqdn.File
	for i := range files {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("checkpoint%d", i)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	c := fqdn.New(fqdn.Options{Settings: fqdn.Settings{MinTTL: time.Second}, Checkpoints: files})
	for _, name := range names {
		a := fqdn.Answer{Name: name, Pod: netip.MustParseAddr("10.77.1.2")}
		for _, addr := range n.OutsideAddrs() {
			a.Records = append(a.Records, fqdn.Record{Addr: addr, TTL: ttl})
		}
		if err := c.Learn(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Retire(); err != nil {
		t.Fatal(err)
	}
}

// names is what `weir fqdn` lists: name, number of addresses, selectors.
func (s *story) names(match string) (out []string) {
	s.t.Helper()
	text, err := s.nodes[0].Weir().Command(s.t.Context(), "fqdn", "-o", "json", match)
	if err != nil {
		s.t.Fatalf("weir fqdn: %v", err)
	}
	for line := range strings.Lines(text) {
		var n struct {
			Name      string
			Namespace string
			Addresses []struct{ Identity uint32 }
			Selectors []struct{ MatchName, MatchPattern string }
			Pods      []string
		}
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			s.t.Fatalf("weir fqdn: %v in %q", err, line)
		}
		known := 0
		for _, a := range n.Addresses {
			if a.Identity != 0 {
				known++
			}
		}
		if n.Namespace != "" {
			n.Name = n.Namespace + "/" + n.Name
		}
		out = append(out, fmt.Sprintf("%s %d of %d %s", n.Name, known, len(n.Addresses), n.Pods))
	}
	return out
}

// TestNamesOutliveProcesses: what a proxy learned is in force in the next one,
// also where several names share an address, which then has an identity of its
// own; whoever dies meanwhile.
func TestNamesOutliveProcesses(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/names.txtar")
	learned(t, s.nodes[0], time.Hour, "api.example.test", "www.example.test", "unheard.test")
	s.must("start")
	check := func(when string) {
		t.Helper()
		for _, line := range []string{
			"shop/client GET outside:80/ => 200",
			"shop/client tcp outside:5432 => ok",
			"shop/client GET outside:8080/ => dropped",
			"shop/other GET outside:80/ => dropped",
			"shop/client GET shop/web:80/ => dropped",
		} {
			w, err := words(line)
			if err == nil {
				err = s.do(w)
			}
			if err != nil {
				t.Errorf("%s: %s: %v", when, line, err)
			}
		}
		want := []string{"api.example.test 2 of 2 [shop/client]", "www.example.test 2 of 2 [shop/client]"}
		if got := s.names("example"); !slices.Equal(got, want) {
			t.Errorf("%s: weir fqdn lists %q, want %q", when, got, want)
		}
	}
	check("at first")
	if got := s.names(""); len(got) != 3 {
		t.Errorf("weir fqdn lists %q", got)
	}
	w := s.nodes[0].Weir()

	w.Agent().Kill()
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	if err := s.follow(s.nodes[0]); err != nil {
		t.Fatal(err)
	}
	check("another agent")

	// It has written down what it knows, beside what it began with.
	for _, name := range []string{"checkpoint0", "checkpoint1"} {
		if info, err := os.Stat(filepath.Join(w.RunDir, name)); err != nil || info.Size() < 100 {
			t.Errorf("%s: %v, %+v", name, err, info)
		}
	}
	kill(w.ProxyPids()[1])
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := w.Command(context.Background(), "fqdn"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no proxy after one was killed")
		}
	}
	s.must("wait")
	check("another proxy")

	s.must("remove client.yaml")
	s.must("wait")
	s.check("shop/client GET outside:8080/ => 200")
	if got, want := s.names("api"), []string{"api.example.test 0 of 2 [shop/client]"}; !slices.Equal(got, want) {
		t.Errorf("without a policy weir fqdn lists %q, want %q", got, want)
	}
	s.must("apply client.yaml")
	s.must("wait")
	check("the policy is there again")
}

// TestNamesExpire: an address stands for its name as long as the answer says,
// and then as long as it is in use.
func TestNamesExpire(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/names.txtar", "--fqdn-min-ttl=1s")
	learned(t, s.nodes[0], 5*time.Second, "www.example.test")
	s.must("start")
	open := s.connectPair(s.places["shop/client"], s.places["outside"], 0, 7001)
	left := func(want ...string) {
		t.Helper()
		var got []string
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if got = s.names(""); slices.Equal(got, want) {
				return
			}
		}
		t.Fatalf("weir fqdn lists %q, not %q", got, want)
	}
	left("www.example.test 2 of 2 [shop/client]")
	left("www.example.test 1 of 1 [shop/client]") // nobody uses the other
	s.must("remove other.yaml")                   // all flows are judged anew
	s.must("wait")
	if err := open.both(patience); err != nil {
		t.Errorf("an open connection after the time of its name: %v", err)
	}
	s.check("shop/client GET outside:5432/ family=6 => dropped")
	s.check("shop/client tcp outside:5432 family=4 => ok")
	open.client.Close()
	open.server.Close()
	left()
	s.check("shop/client tcp outside:5432 => dropped")
}

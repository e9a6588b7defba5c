package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weirnet/weir/fqdn"
)

// TestNamesMemory: 100,000 names with 300,000 addresses, all of which a policy
// is about, leave the whole proxy below 120 MB.
func TestNamesMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	s := tell(t, "setups/names.txtar")
	n := s.nodes[0]
	dir := filepath.Join("/run/weir", n.State)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "checkpoint1"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := fqdn.New(fqdn.Options{Checkpoints: [2]fqdn.File{1: f}})
	a := fqdn.Answer{Pod: netip.MustParseAddr("10.77.1.2"), Records: make([]fqdn.Record, 3)}
	for i := range 100_000 {
		a.Name = fmt.Sprintf("host-%d.elsewhere.test", i)
		for j := range a.Records {
			k := 3*i + j
			a.Records[j] = fqdn.Record{Addr: netip.AddrFrom4([4]byte{100, byte(64 + k>>16), byte(k >> 8), byte(k)}), TTL: time.Hour}
		}
		if err := c.Learn(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Retire(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.must("start")
	t.Logf("started in %v", time.Since(began))
	s.must("apply client.yaml as=more.yaml")
	s.must("wait")
	time.Sleep(5 * time.Second)
	if got := s.names("host-99999."); len(got) != 1 || got[0] != "host-99999.elsewhere.test 3 of 3 [shop/client]" {
		t.Errorf("weir fqdn lists %q", got)
	}
	text, err := n.Weir().Command(t.Context(), "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Proxy struct {
			RSS uint64 `json:"rssBytes"`
		} `json:"proxy"`
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatal(err)
	}
	t.Logf("the proxy has %d MB resident", status.Proxy.RSS>>20)
	if status.Proxy.RSS == 0 || status.Proxy.RSS > 120<<20 {
		t.Errorf("the proxy has %d bytes resident", status.Proxy.RSS)
	}
}

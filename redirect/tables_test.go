package redirect

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weirnet/weir/proxy/control"
)

// TestProxyHoldsItsTablesOnly: of all the node's tables a wired proxy has those
// that it needs, and no others are sent to it.
func TestProxyHoldsItsTablesOnly(t *testing.T) {
	inNamespace(t, func() {
		dir, d := setUpAgent(t)
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		tables, err := d.ProxyMaps(current(t, d, 0))
		if err != nil {
			t.Fatal(err)
		}
		sent := slices.Sorted(maps.Keys(tables))
		if want := []string{"conns", "conntrack", "fqdn", "grants", "listeners", "revision", "shares"}; !slices.Equal(sent, want) {
			t.Errorf("it is sent %q", sent)
		}
		want := map[string]string{}
		for name, f := range tables {
			want[mapNumber(t, "self", f.Fd())] = name
			defer f.Close()
		}
		_, child := pids(t, dir)
		descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", child))
		if err != nil {
			t.Fatal(err)
		}
		var held []string
		for _, e := range descriptors {
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			if number := mapNumber(t, strconv.Itoa(child), uintptr(fd)); number != "" {
				held = append(held, want[number])
			}
		}
		slices.Sort(held)
		// The revision is mapped, and needs no descriptor then.
		if !slices.Equal(held, []string{control.MapConns, control.MapConntrack, control.MapFQDN, control.MapGrants, control.MapListeners, control.MapShares}) {
			t.Errorf("the proxy holds %q", held)
		}
		mapped, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", child))
		if n := bytes.Count(mapped, []byte("bpf-map")); n != 1 || err != nil {
			t.Errorf("it has mapped %d tables, %v", n, err)
		}
	})
}

// mapNumber is the number of the table behind a descriptor; "" if it is none.
func mapNumber(t *testing.T, process string, fd uintptr) string {
	t.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/%s/fdinfo/%d", process, fd))
	if errors.Is(err, os.ErrNotExist) {
		return "" // closed meanwhile
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(info), "\nmap_id:")
	if !found {
		return ""
	}
	return strings.Fields(rest)[0]
}

package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/test/node"
)

// inventory is what a Weir could leave behind.
func inventory(t *testing.T, s *story) []string {
	t.Helper()
	var found []string
	add := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	n := s.nodes[0]
	for name, p := range s.places {
		links, err := p.Links()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			add("link %s in %s", l, name)
		}
		err = p.Do(func() error {
			// clsact filters and tcx programs, as the kernel shows them per link.
			list, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, l := range list {
				qdiscs, err := netlink.QdiscList(l)
				if err != nil {
					return err
				}
				for _, q := range qdiscs {
					add("qdisc %s on %s in %s", q.Type(), l.Attrs().Name, name)
				}
			}
			routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
			for _, r := range routes {
				add("route %s in %s", r.Dst, name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	namespaces, err := os.ReadDir("/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range namespaces {
		if strings.HasPrefix(ns.Name(), s.network.Name) || strings.Contains(ns.Name(), n.State) {
			add("namespace %s", ns.Name())
		}
	}
	for _, pid := range n.Weir().Pids() {
		add("process %d", pid)
	}
	mounts, err := node.MountsUnder("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.Contains(m, n.State) {
			add("mount %s", m)
		}
	}
	for _, dir := range []string{"/run", "/sys/fs/bpf", "/tmp", "/var/run", "/var/lib"} {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && strings.Contains(path, n.State) {
				add("file %s", path)
			}
			return nil
		})
	}
	slices.Sort(found)
	return found
}

// TestUninstallLeavesNothing compares the machine before and after, with a
// running agent, with a killed one, and with nothing installed.
func TestUninstallLeavesNothing(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/not-started.txtar")
	n := s.nodes[0]
	w := n.NewWeir(program, s.objects, s)
	before := inventory(t, s)
	for _, end := range []string{"stopped", "killed", "killed with the proxy", "killed, and the proxy hangs", "killed, with clsact", "never started"} {
		if end != "never started" {
			var args []string
			if strings.HasSuffix(end, "clsact") {
				args = append(args, "--clsact")
			}
			if err := w.Start(args...); err != nil {
				t.Fatal(err)
			}
			if err := w.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			during := inventory(t, s)
			if slices.Equal(before, during) {
				t.Fatal("a running Weir leaves no trace: the inventory is blind")
			}
			filters := slices.Contains(during, "qdisc clsact on "+s.places["shop/web"].pod.HostLink+" in host-a")
			if filters != (len(args) > 0) {
				t.Errorf("%s: clsact on the pod's interface: %v", end, filters)
			}
			status, _, err := get(s.places["shop/client"].HTTPClient(patience), s.places["shop/web"].addrs[0], 8080, "/a")
			if err != nil || status != 200 {
				t.Fatalf("%d, %v", status, err)
			}
		}
		switch end {
		case "stopped":
			w.Agent().Stop()
		case "killed", "killed, with clsact":
			w.Agent().Kill()
		case "killed with the proxy":
			w.Agent().Kill()
			for _, pid := range w.ProxyPids() {
				kill(pid)
			}
		case "killed, and the proxy hangs":
			w.Agent().Kill()
			for _, pid := range w.ProxyPids() {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
		}
		if out, err := w.Command(t.Context(), "uninstall"); err != nil {
			t.Fatalf("%s: %v\n%s", end, err, out)
		}
		after := inventory(t, s)
		for _, x := range after {
			if !slices.Contains(before, x) {
				t.Errorf("%s: left: %s", end, x)
			}
		}
		for _, x := range before {
			if !slices.Contains(after, x) {
				t.Errorf("%s: gone: %s", end, x)
			}
		}
		// Nobody enforces anything.
		if _, err := s.places["shop/stranger"].AskTCP(t.Context(), addrPort(s.places["shop/web"], 0, 7000), "x"); err != nil {
			t.Errorf("%s: %v", end, err)
		}
	}
}

package e2e

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/test/cluster"
)

// TestWithoutUserNamespaces deploys the same to nodes that can make none.
func TestWithoutUserNamespaces(t *testing.T) {
	bringUp(t, cluster.Config{Name: clusterName + "-nouserns", NoUserNamespaces: true}).play([]story{
		{"install", (*deployed).install},
		{"confined", (*deployed).confined},
		{"http", (*deployed).http},
		{"proxy hangs", (*deployed).proxyHangs},
		{"capabilities", func(d *deployed) { d.capabilities(true) }},
		{"uninstall", (*deployed).uninstall},
	})
}

// confined: the proxy is nobody, with two capabilities of the node's in a network
// namespace of its own, and the status says so.
func (d *deployed) confined() {
	if out := d.weir("status"); !strings.Contains(out, "the proxy has no user namespace") {
		d.t.Errorf("weir status does not say that there are none:\n%s", out)
	}
	pid, err := d.proxyPID()
	if err != nil {
		d.t.Fatal(err)
	}
	status, err := d.inNode("cat", fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		d.t.Fatal(status, err)
	}
	const capabilities = 1<<10 | 1<<12 // NET_BIND_SERVICE, NET_ADMIN
	for _, want := range []string{
		"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
		fmt.Sprintf("CapPrm:\t%016x\n", capabilities), fmt.Sprintf("CapEff:\t%016x\n", capabilities), "CapAmb:\t0000000000000000\n",
	} {
		if !strings.Contains(status, want) {
			d.t.Errorf("the proxy's process lacks %q:\n%s", want, status)
		}
	}
	for namespace, shared := range map[string]bool{"user": true, "net": false, "pid": false, "ipc": false, "uts": false} {
		its, err := d.inNode("readlink", fmt.Sprintf("/proc/%d/ns/%s", pid, namespace))
		if err != nil {
			d.t.Fatal(its, err)
		}
		if nodes, err := d.inNode("readlink", "/proc/1/ns/"+namespace); err != nil || (its == nodes) != shared {
			d.t.Errorf("%s namespace: %s, the node's is %s (%v)", namespace, its, nodes, err)
		}
	}
}

// proxyHangs: the agent sees it, and ends a process of another container.
func (d *deployed) proxyHangs() {
	if why := d.hangs(); why != "" {
		d.t.Error(why)
	}
}

// hangs stops the proxy: the agent has to see that, and end it. It returns what
// did not happen.
func (d *deployed) hangs() string {
	d.t.Helper()
	before, err := d.proxyPID()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.machineKill(before, syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	said := eventually(15*time.Second, func() string {
		now, err := d.proxyPID()
		if err != nil || now == before {
			return fmt.Sprintf("a proxy that hangs is not replaced: %v", err)
		}
		return ""
	})
	if said != "" {
		_ = d.machineKill(before, syscall.SIGKILL) // for what comes next
	}
	return said
}

// proxyPID is that of the proxy that was started last, as the node counts.
func (d *deployed) proxyPID() (int, error) {
	paths, err := filepath.Glob(filepath.Join(d.Nodes[0].Root(), "run/weir/weir/proxy-*.lock"))
	if err != nil || len(paths) == 0 {
		return 0, fmt.Errorf("no proxy: %w", err)
	}
	last := slices.MaxFunc(paths, func(a, b string) int { // proxy-10 after proxy-9
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	text, err := d.inNode("cat", "/run/weir/weir/"+filepath.Base(last))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", text, err)
	}
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return 0, fmt.Errorf("who is the proxy: %q", text)
	}
	return strconv.Atoi(fields[1])
}

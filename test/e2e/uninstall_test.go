package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/test/cluster"
)

// uninstall takes Weir off again: nothing may be left of it but what is users'.
func (d *deployed) uninstall() {
	web, other := d.pod("http", "web"), d.pod("http", "other")
	d.apply(httpPolicy)
	d.enforced()
	d.expect("another client, before,", other.space, web.web(), false)
	if n := d.programs(0); n == 0 {
		d.t.Fatal("no program is found where there must be some")
	}
	began := time.Now()
	d.kubectl("", "delete", "-f", manifest, "--timeout=120s")
	d.t.Logf("deleted after %.1fs", time.Since(began).Seconds())
	// By itself that opens nothing.
	d.expect("another client, without pods of Weir,", other.space, web.web(), false)

	d.kubectl("", "apply", "-f", uninstall)
	d.kubectl("", "-n", "weir-system", "rollout", "status", "daemonset/weir-uninstall", "--timeout=60s")
	d.t.Logf("off the nodes after %.1fs", time.Since(began).Seconds())
	d.expect("another client, after,", other.space, web.web(), true)
	for i, n := range d.Nodes {
		// The kernel lets go of them some time after their last pin.
		if said := eventually(5*time.Second, func() string {
			if left := d.programs(i); left != 0 {
				return fmt.Sprintf("%s: %d programs are left on interfaces and cgroups", n.Name, left)
			}
			return ""
		}); said != "" {
			d.t.Error(said)
		}
		for _, path := range []string{"/run/weir", "/sys/fs/bpf/weir"} {
			if _, err := os.Lstat(filepath.Join(n.Root(), path)); !errors.Is(err, os.ErrNotExist) {
				files, _ := filepath.Glob(filepath.Join(n.Root(), path, "*"))
				d.t.Errorf("%s: %s is left: %v, %v", n.Name, path, files, err)
			}
		}
		for _, l := range d.links(i) {
			if strings.HasPrefix(l.Attrs().Name, "weir") {
				d.t.Errorf("%s: interface %s is left", n.Name, l.Attrs().Name)
			}
		}
		d.noProcess(n)
	}
	d.kubectl("", "delete", "-f", uninstall, "--timeout=60s")
	// What is users' stays, and what tells what it means.
	d.kubectl("", "-n", "http", "get", "ciliumnetworkpolicy", "web")
	for _, name := range []string{"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups"} {
		d.kubectl("", "get", "customresourcedefinition", name+".cilium.io")
	}
	for _, n := range d.Nodes {
		if _, err := os.Lstat(filepath.Join(n.Root(), "/run/weir")); !errors.Is(err, os.ErrNotExist) {
			d.t.Errorf("%s: /run/weir has come back", n.Name)
		}
	}
}

// noProcess makes sure that no proxy and no agent runs on a node, and so none of
// their network namespaces is left, which nothing else holds.
func (d *deployed) noProcess(n cluster.Node) {
	out, err := n.Command("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").CombinedOutput()
	if err != nil || len(out) == 0 {
		d.t.Errorf("%s: processes: %q, %v", n.Name, out, err)
	}
	for _, what := range []string{"/weir agent", "/weir proxy"} {
		if strings.Contains(string(out), what) {
			d.t.Errorf("%s: %q runs", n.Name, what)
		}
	}
	out, err = n.Command("ls", "/run/netns").CombinedOutput()
	if err != nil || strings.Contains(string(out), "weir") {
		d.t.Errorf("%s: network namespaces: %q, %v", n.Name, out, err)
	}
}

func (d *deployed) links(node int) (all []netlink.Link) {
	err := d.nodes[node].do(func() (err error) {
		all, err = netlink.LinkList()
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

// programs counts those on a node's interfaces and on its cgroups.
func (d *deployed) programs(node int) (n int) {
	count := func(target int, attach ebpf.AttachType) {
		result, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
		if err == nil {
			n += len(result.Programs)
		} else if !errors.Is(err, ebpf.ErrNotSupported) {
			d.t.Error(err)
		}
	}
	for _, l := range d.links(node) {
		// The queries are about the namespace of the thread that asks.
		_ = d.nodes[node].do(func() error {
			count(l.Attrs().Index, ebpf.AttachTCXIngress)
			count(l.Attrs().Index, ebpf.AttachTCXEgress)
			return nil
		})
	}
	// With one hierarchy, and beside those of version 1.
	cgroups, err := filepath.Glob(filepath.Join(d.Nodes[node].Root(), "sys/fs/cgroup/kubepods*"))
	if err == nil && len(cgroups) == 0 {
		cgroups, err = filepath.Glob(filepath.Join(d.Nodes[node].Root(), "sys/fs/cgroup/unified/kubepods*"))
	}
	if err != nil {
		d.t.Fatal(err)
	}
	for _, path := range cgroups {
		f, err := os.Open(path)
		if err != nil {
			d.t.Fatal(err)
		}
		count(int(f.Fd()), ebpf.AttachCGroupInet4Connect)
		_ = f.Close()
	}
	return n
}

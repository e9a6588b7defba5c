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
)

// uninstall takes Weir off again: nothing may be left of it but what is users'.
func (d *deployed) uninstall() {
	web, other := d.pod("http", "web"), d.pod("http", "other")
	d.apply(httpPolicy)
	d.enforced()
	d.expect("another client, before,", other.space, web.web(), false)
	if n := d.programs(); n == 0 {
		d.t.Fatal("no program is found where there must be some")
	}
	d.kubectl("", "delete", "-f", manifest, "--timeout=120s")
	// By itself that opens nothing.
	d.expect("another client, without pods of Weir,", other.space, web.web(), false)

	d.kubectl("", "apply", "-f", uninstall)
	d.kubectl("", "-n", "weir-system", "rollout", "status", "daemonset/weir-uninstall", "--timeout=60s")
	d.expect("another client, after,", other.space, web.web(), true)
	// The kernel lets go of them some time after their last pin.
	if said := eventually(5*time.Second, func() string {
		if n := d.programs(); n != 0 {
			return fmt.Sprintf("%d programs are left on interfaces and cgroups", n)
		}
		return ""
	}); said != "" {
		d.t.Error(said)
	}
	for _, path := range []string{"/run/weir", "/sys/fs/bpf/weir"} {
		if _, err := os.Lstat(filepath.Join(d.Nodes[0].Root(), path)); !errors.Is(err, os.ErrNotExist) {
			files, _ := filepath.Glob(filepath.Join(d.Nodes[0].Root(), path, "*"))
			d.t.Errorf("%s is left: %v, %v", path, files, err)
		}
	}
	for _, l := range d.links() {
		if strings.HasPrefix(l.Attrs().Name, "weir") {
			d.t.Errorf("interface %s is left", l.Attrs().Name)
		}
	}
	d.kubectl("", "delete", "-f", uninstall, "--timeout=60s")
	// What is users' stays.
	d.kubectl("", "-n", "http", "get", "ciliumnetworkpolicy", "web")
	if _, err := os.Lstat(filepath.Join(d.Nodes[0].Root(), "/run/weir")); !errors.Is(err, os.ErrNotExist) {
		d.t.Error("/run/weir has come back")
	}
}

func (d *deployed) links() (all []netlink.Link) {
	err := d.node.do(func() (err error) {
		all, err = netlink.LinkList()
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

// programs counts those on the node's interfaces and on its cgroups.
func (d *deployed) programs() (n int) {
	count := func(target int, attach ebpf.AttachType) {
		result, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
		if err == nil {
			n += len(result.Programs)
		} else if !errors.Is(err, ebpf.ErrNotSupported) {
			d.t.Error(err)
		}
	}
	for _, l := range d.links() {
		// The queries are about the namespace of the thread that asks.
		_ = d.node.do(func() error {
			count(l.Attrs().Index, ebpf.AttachTCXIngress)
			count(l.Attrs().Index, ebpf.AttachTCXEgress)
			return nil
		})
	}
	// With one hierarchy, and beside those of version 1.
	cgroups, err := filepath.Glob(filepath.Join(d.Nodes[0].Root(), "sys/fs/cgroup/kubepods*"))
	if err == nil && len(cgroups) == 0 {
		cgroups, err = filepath.Glob(filepath.Join(d.Nodes[0].Root(), "sys/fs/cgroup/unified/kubepods*"))
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

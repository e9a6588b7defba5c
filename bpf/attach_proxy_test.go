package bpf

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A proxy's wiring: its own sockmap, descriptors it may write or not, a
// successor's programs, and that it goes.
func TestAttachProxy(t *testing.T) {
	pins := mountPins(t)
	ns, proxy, other := newNamespace(t), newNamespace(t), newNamespace(t)
	weir := ns.veth(t, "weir0", proxy, "eth0")
	d := load(t, pins, nil)
	attach := func(d *Datapath, generation uint8, netns *os.File) (err error) {
		ns.do(func() { err = d.AttachProxy(generation, weir, netns) })
		return err
	}
	check(t, attach(d, 3, proxy.file))
	check(t, attach(d, 3, proxy.file))
	if err := attach(d, 3, other.file); err == nil {
		t.Error("a generation moved to another namespace")
	}
	if got, err := d.AttachedProxies(); err != nil || !slices.Equal(got, []uint8{3}) {
		t.Errorf("proxies %v %v", got, err)
	}

	files, err := d.ProxyMaps(3)
	check(t, err)
	for name, f := range files {
		// A copy: two owners would close the number twice, the second time
		// under whoever has it by then.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		check(t, err)
		m, err := ebpf.NewMapFromFD(fd)
		check(t, err)
		defer letGo(m)
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		err = m.Update(key, value, ebpf.UpdateAny)
		// A sockmap takes sockets only: that it gets as far as asking is enough.
		if errors.Is(err, unix.EPERM) != (name == "conntrack" || name == "shares") {
			t.Errorf("%s: writing gives %v", name, err)
		}
	}
	for _, name := range []string{"listeners", "conns", "fqdn", "conntrack", "shares", "grants", revisionTable} {
		if files[name] == nil {
			t.Errorf("no table %s", name)
		}
	}
	if _, err := d.ProxyMaps(4); err == nil {
		t.Error("tables for a proxy that is not attached")
	}

	// Every connection in the namespace reaches the listener.
	var ln net.Listener
	proxy.do(func() {
		if err = setUp("lo"); err != nil {
			return
		}
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	})
	check(t, err)
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	check(t, err)
	listeners, err := ebpf.LoadPinnedMap(filepath.Join(proxyDir(pins, 3), "listeners"), nil)
	check(t, err)
	defer letGo(listeners)
	dial := func() error {
		var derr error
		proxy.do(func() {
			c, e := net.Dial("tcp4", "127.9.9.9:4242")
			if derr = e; e == nil {
				c.Close()
			}
		})
		return derr
	}
	if dial() == nil {
		t.Error("connected without a listener")
	}
	check(t, raw.Control(func(fd uintptr) { err = listeners.Put(ListenerTCP4, uint64(fd)) }))
	check(t, err)
	check(t, dial())

	// A successor's programs, with the same listener.
	next := load(t, pins, nil)
	ns.do(func() { err = next.Activate() })
	check(t, err)
	tcx, _ := ns.programs(t, weir, ebpf.AttachTCXIngress)
	if !slices.Equal(tcx, []int{id(t, next.objects.FromProxy)}) {
		t.Errorf("from_proxy was not replaced: %v", tcx)
	}
	check(t, dial())

	ns.do(func() { err = next.DetachProxy(3, weir) })
	check(t, err)
	if got, err := next.AttachedProxies(); err != nil || len(got) != 0 {
		t.Errorf("proxies %v %v", got, err)
	}
	ns.bare(t, weir)
	if dial() == nil {
		t.Error("steered after it was detached")
	}
	ns.do(func() { err = next.DetachProxy(3, weir) })
	check(t, err)
}

// A proxy with other listeners than this version's goes on with what it has, and
// can't be wired anew.
func TestProxyOfAnotherVersion(t *testing.T) {
	pins := mountPins(t)
	ns, proxy := newNamespace(t), newNamespace(t)
	weir := ns.veth(t, "weir0", proxy, "eth0")
	d := load(t, pins, nil)
	attach := func(d *Datapath) (err error) {
		ns.do(func() { err = d.AttachProxy(3, weir, proxy.file) })
		return err
	}
	check(t, attach(d))
	pin := filepath.Join(proxyDir(pins, 3), listenersPin)
	check(t, os.Remove(pin))
	older, err := ebpf.NewMap(&ebpf.MapSpec{Name: "listeners", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	check(t, err)
	defer letGo(older)
	check(t, older.Pin(pin))

	next := load(t, pins, nil)
	ns.do(func() { err = next.Activate() })
	check(t, err)
	if tcx, _ := ns.programs(t, weir, ebpf.AttachTCXIngress); !slices.Equal(tcx, []int{id(t, next.objects.FromProxy)}) {
		t.Errorf("from_proxy was not replaced: %v", tcx)
	}
	if err := attach(next); !errors.Is(err, ebpf.ErrMapIncompatible) {
		t.Errorf("wired anew: %v", err)
	}
	ns.do(func() { err = next.DetachProxy(3, weir) })
	check(t, err)
	check(t, attach(next))
}

package bpf

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace of the test's own. Functions run in it one
// at a time.
type namespace struct {
	calls chan func()
	file  *os.File
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	ns := &namespace{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		ready <- err
		for f := range ns.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		close(ns.calls)
		ns.file.Close()
	})
	return ns
}

// do runs f in the namespace.
func (ns *namespace) do(f func()) {
	done := make(chan struct{})
	ns.calls <- func() { defer close(done); f() }
	<-done
}

// quiet keeps the kernel from sending anything of its own in ns.
func (ns *namespace) quiet(t testing.TB) {
	t.Helper()
	var err error
	ns.do(func() {
		// /proc/sys/net is that of the thread that opens it.
		err = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// veth makes a pair with this side up in ns and the other in peer, and returns
// the index of this side.
func (ns *namespace) veth(t testing.TB, name string, peer *namespace, peerName string) (index int) {
	t.Helper()
	ns.do(func() {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500},
			PeerName:  peerName, PeerNamespace: netlink.NsFd(int(peer.file.Fd())),
		})
		if err != nil {
			t.Errorf("make veth %s: %v", name, err)
			return
		}
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Errorf("find veth %s: %v", name, err)
			return
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Errorf("set veth %s up: %v", name, err)
		}
		index = l.Attrs().Index
	})
	if t.Failed() {
		t.FailNow()
	}
	return index
}

// untilUp waits until an interface carries packets: the kernel sees to that some
// time after both of its ends were set up, and drops what comes before.
func (ns *namespace) untilUp(t testing.TB, ifindex int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		var l netlink.Link
		var err error
		ns.do(func() { l, err = netlink.LinkByIndex(ifindex) })
		if err != nil {
			t.Fatal(err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("interface %s is %v", l.Attrs().Name, l.Attrs().OperState)
		}
	}
}

func setUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

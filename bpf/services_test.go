package bpf

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/test/sockets"
)

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func TestServicesReachBackends(t *testing.T) {
	everyWay(t, func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool) {
		before, err := x.Counts()
		x.must(err)
		x.service(1, 0, protocol, w.backends(3), ap(w.cluster, 80))
		seen := map[string]int{}
		for range 60 {
			who, err := ask(p, w.family, typ, connects, ap(w.cluster, 80))
			x.must(err)
			seen[who]++
		}
		if len(seen) != 3 { // one is missed by chance once in 10^10
			x.t.Errorf("answered: %v", seen)
		}
		after, err := x.Counts()
		x.must(err)
		if n := after.Translated - before.Translated; n != 60 {
			x.t.Errorf("%d translations were counted, want 60", n)
		}
		// Another port, another protocol, an address of nobody.
		other := uint8(unix.IPPROTO_TCP + unix.IPPROTO_UDP - int(protocol))
		x.must(x.Services.Delete(ServiceKeyOf(ap(w.cluster, 80), protocol)))
		x.service(1, 0, other, w.backends(3), ap(w.cluster, 80))
		if _, err := ask(p, w.family, typ, connects, ap(w.cluster, 80)); !errors.Is(err, unix.ENETUNREACH) {
			x.t.Errorf("of another protocol: %v, want %v", err, unix.ENETUNREACH)
		}
	})
}

// TestServicesLeaveOthersAlone: a backend named by its own address is seen by it,
// also by a socket that reached it by the service before.
func TestServicesLeaveOthersAlone(t *testing.T) {
	everyWay(t, func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool) {
		x.service(1, 0, protocol, w.backends(1), ap(w.cluster, 80))
		s, err := p.Open(w.family, typ)
		x.must(err)
		defer s.Close()
		if typ == unix.SOCK_DGRAM {
			_, err = askOn(s, typ, connects, ap(w.cluster, 80))
			x.must(err)
		}
		who, err := askOn(s, typ, connects, w.backends(1)[0])
		x.must(err)
		if who != w.servers[0].String() {
			x.t.Errorf("%s answered", who)
		}
	})
}

func TestServicesWithoutBackendsRefuse(t *testing.T) {
	everyWay(t, func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool) {
		before, err := x.Counts()
		x.must(err)
		x.service(1, 0, protocol, nil, ap(w.cluster, 80))
		if _, err := ask(p, w.family, typ, connects, ap(w.cluster, 80)); !errors.Is(err, unix.ECONNREFUSED) {
			x.t.Errorf("%v, want %v", err, unix.ECONNREFUSED)
		}
		after, err := x.Counts()
		x.must(err)
		if after.Refused != before.Refused+1 {
			x.t.Errorf("%d refusals were counted, want 1", after.Refused-before.Refused)
		}
	})
}

func TestServicesOfNodePorts(t *testing.T) {
	everyWay(t, func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool) {
		x.service(1, 0, protocol, w.backends(1), ap(w.wildcard, 30080))
		if _, err := ask(p, w.family, typ, connects, ap(w.node, 30080)); !errors.Is(err, unix.ENETUNREACH) {
			x.t.Errorf("an address that is no node's: %v, want %v", err, unix.ENETUNREACH)
		}
		x.must(x.Nodes.Update(ServiceAddr(AddrOf(w.node)), 1))
		who, err := ask(p, w.family, typ, connects, ap(w.node, 30080))
		x.must(err)
		if who != w.servers[0].String() {
			x.t.Errorf("%s answered", who)
		}
		if _, err := ask(p, w.family, typ, connects, ap(w.node, 30081)); !errors.Is(err, unix.ENETUNREACH) {
			x.t.Errorf("another port: %v, want %v", err, unix.ENETUNREACH)
		}
	})
}

func TestServicesAffinity(t *testing.T) {
	everyWay(t, func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool) {
		id := uint32(100 + int(w.family)*10 + typ)
		if connects {
			id += 5
		}
		x.service(id, 2, protocol, w.backends(3), ap(w.cluster, 80))
		first, err := ask(p, w.family, typ, connects, ap(w.cluster, 80))
		x.must(err)
		for range 20 {
			who, err := ask(p, w.family, typ, connects, ap(w.cluster, 80))
			x.must(err)
			if who != first {
				x.t.Fatalf("%s answered, and %s before", who, first)
			}
		}
		// Another pod makes a choice of its own: among these some is another.
		others := 0
		for range 12 {
			ns := newNamespace(x.t)
			q := x.process(x.cgroup, ns)
			s, err := q.Open(w.family, typ)
			x.must(err)
			// It has no servers: where it was sent is enough.
			if connects {
				_ = s.Connect(ap(w.cluster, 80))
			} else {
				_ = s.SendTo("who", ap(w.cluster, 80))
			}
			q.Stop()
		}
		rows, err := Table[serviceClient, serviceStay]{"affinity", x.objects.Affinity}.Snapshot()
		x.must(err)
		for k, v := range rows {
			if k.Service == id && v.Backend.AddrPort().Addr().String() != first {
				others++
			}
		}
		if others == 0 {
			x.t.Error("all pods stay with one backend")
		}
		// The backend goes, and the pod goes to another, and stays there.
		gone := ap(netip.MustParseAddr(first), serverPort)
		var left []netip.AddrPort
		for _, b := range w.backends(3) {
			if b != gone {
				left = append(left, b)
			}
		}
		x.service(id, 2, protocol, left, ap(w.cluster, 80))
		x.must(x.Members.Delete(Member{Service: id, Backend: BackendOf(gone)}))
		second, err := ask(p, w.family, typ, connects, ap(w.cluster, 80))
		x.must(err)
		if second == first {
			x.t.Errorf("%s answers still", first)
		}
	})
}

func TestServicesAffinityEnds(t *testing.T) {
	x := newTranslated(t)
	p := x.process(x.cgroup, x.pod)
	w := ways[0]
	x.service(1, 1, unix.IPPROTO_TCP, w.backends(3), ap(w.cluster, 80))
	seen := map[string]bool{}
	for i := 0; len(seen) < 2; i++ {
		if i == 20 { // once in 10^9 by chance
			t.Fatalf("only %v answered, though each choice is older than its time", seen)
		}
		who, err := ask(p, w.family, unix.SOCK_STREAM, true, ap(w.cluster, 80))
		x.must(err)
		seen[who] = true
		time.Sleep(1100 * time.Millisecond)
	}
}

// TestServicesKeepToOneBackend: all datagrams of an unconnected socket to a
// service go to one backend, until that is gone; while it drains they stay.
func TestServicesKeepToOneBackend(t *testing.T) {
	x := newTranslated(t)
	p := x.process(x.cgroup, x.pod)
	for _, w := range ways {
		x.clear()
		x.service(1, 0, unix.IPPROTO_UDP, w.backends(3), ap(w.cluster, 53))
		s, err := p.Open(w.family, unix.SOCK_DGRAM)
		x.must(err)
		first, err := askOn(s, unix.SOCK_DGRAM, false, ap(w.cluster, 53))
		x.must(err)
		stays := func() {
			t.Helper()
			for range 10 {
				who, err := askOn(s, unix.SOCK_DGRAM, false, ap(w.cluster, 53))
				x.must(err)
				if who != first {
					t.Fatalf("%s: %s answered, and %s before", w.family, who, first)
				}
			}
		}
		stays()
		member := Member{Service: 1, Backend: BackendOf(ap(netip.MustParseAddr(first), serverPort))}
		var left []netip.AddrPort
		for _, b := range w.backends(3) {
			if b != member.Backend.AddrPort() {
				left = append(left, b)
			}
		}
		x.service(1, 0, unix.IPPROTO_UDP, left, ap(w.cluster, 53))
		x.must(x.Members.Update(member, MemberDraining))
		stays()
		x.must(x.Members.Delete(member))
		who, err := askOn(s, unix.SOCK_DGRAM, false, ap(w.cluster, 53))
		x.must(err)
		if who == first {
			t.Errorf("%s: %s answers still", w.family, first)
		}
	}
}

// TestServicesForWhom: the node's own sockets, those of other cgroups and of
// proxies' namespaces are left alone, and everybody's when nobody keeps the
// tables.
func TestServicesForWhom(t *testing.T) {
	everyWay(t, func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool) {
		x.service(1, 0, protocol, w.backends(1), ap(w.cluster, 80))
		alone := func(what string, p *sockets.Process) {
			x.t.Helper()
			if _, err := ask(p, w.family, typ, connects, ap(w.cluster, 80)); !errors.Is(err, unix.ENETUNREACH) {
				x.t.Errorf("%s: %v, want %v", what, err, unix.ENETUNREACH)
			}
		}
		translates := func(what string) {
			x.t.Helper()
			if _, err := ask(p, w.family, typ, connects, ap(w.cluster, 80)); err != nil {
				x.t.Errorf("%s: %v", what, err)
			}
		}
		translates("at first")
		alone("another cgroup", x.process(newCgroup(x.t, cgroupRoot(x.t)), x.pod))

		host := atomic.LoadUint64(&x.guard.Host)
		own, err := netnsCookieOf(x.pod.file)
		x.must(err)
		if own == host || own == 0 {
			x.t.Fatalf("namespaces have the cookies %d and %d", own, host)
		}
		atomic.StoreUint64(&x.guard.Host, own)
		alone("the host's namespace", p)
		atomic.StoreUint64(&x.guard.Host, host)
		translates("again a pod's")

		x.must(x.LeaveAlone(7, x.pod.file))
		alone("a proxy's namespace", p)
		x.must(x.LeaveAlone(7, newNamespace(x.t).file))
		translates("the proxy has another")

		before, err := x.Counts()
		x.must(err)
		alive := atomic.LoadUint64(&x.guard.Alive)
		atomic.StoreUint64(&x.guard.Alive, alive-uint64(ServicesStaleAfter))
		alone("no agent", p)
		atomic.StoreUint64(&x.guard.Alive, 0)
		alone("no agent yet", p)
		x.Alive()
		translates("an agent again")
		after, err := x.Counts()
		x.must(err)
		if n := after.Stale - before.Stale; n != 2 {
			x.t.Errorf("%d were counted as left to kube-proxy, want 2", n)
		}
	})
}

// TestServicesWithAGap: slots that are not there yet, or not any more, are no
// reason to fail.
func TestServicesWithAGap(t *testing.T) {
	everyWay(t, func(x *translated, p *sockets.Process, w way, typ int, protocol uint8, connects bool) {
		x.service(1, 0, protocol, w.backends(1), ap(w.cluster, 80))
		x.must(x.Services.Update(ServiceKeyOf(ap(w.cluster, 80), protocol), Service{Id: 1, Count: 1000}))
		for range 10 {
			_, err := ask(p, w.family, typ, connects, ap(w.cluster, 80))
			x.must(err)
		}
		x.must(x.Backends.Delete(Slot{Service: 1}))
		x.must(x.Members.Delete(Member{Service: 1, Backend: BackendOf(w.backends(1)[0])}))
		if _, err := ask(p, w.family, typ, connects, ap(w.cluster, 80)); !errors.Is(err, unix.ENETUNREACH) {
			x.t.Errorf("no slot at all: %v, want %v: left to kube-proxy", err, unix.ENETUNREACH)
		}
	})
}

// TestServicesSuccession: who comes after finds tables and links, replaces the
// programs in place, moves them to another cgroup, and leaves nothing.
func TestServicesSuccession(t *testing.T) {
	x := newTranslated(t)
	p := x.process(x.cgroup, x.pod)
	w := ways[0]
	x.service(1, 0, unix.IPPROTO_TCP, w.backends(1), ap(w.cluster, 80))
	reach := func(p *sockets.Process) error {
		_, err := ask(p, w.family, unix.SOCK_STREAM, true, ap(w.cluster, 80))
		return err
	}
	x.must(reach(p))

	// Another size is another layout: the tables go when the successor attaches.
	second, err := LoadServices(ServicesOptions{Pins: x.pins, Reverse: 2048})
	x.must(err)
	defer func() { x.must(second.Close()) }()
	if _, ok, err := second.Services.Lookup(ServiceKeyOf(ap(w.cluster, 80), unix.IPPROTO_TCP)); !ok || err != nil {
		t.Errorf("the successor does not find the service: %v", err)
	}
	x.must(reach(p))
	x.must(second.Attach(x.cgroup))
	x.must(reach(p))
	if on, err := second.Attached(x.cgroup); !on || err != nil {
		t.Errorf("attached %v, %v", on, err)
	}
	stale, err := staleMapsIn(x.pins+"/"+servicesDir, second.paths)
	if err != nil || len(stale) > 0 {
		t.Errorf("left over: %v, %v", stale, err)
	}

	elsewhere := newCgroup(t, cgroupRoot(t))
	x.must(second.Attach(elsewhere))
	if err := reach(p); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("in the first cgroup: %v", err)
	}
	x.must(reach(x.process(elsewhere, x.pod)))
	if on, err := second.Attached(x.cgroup); on || err != nil {
		t.Errorf("attached to the first cgroup %v, %v", on, err)
	}
	const all = "connect4 connect6 getpeername4 getpeername6 recvmsg4 recvmsg6 sendmsg4 sendmsg6"
	if got := x.links(); got != all {
		t.Errorf("pinned: %s", got)
	}
	x.must(Remove(x.pins))
	x.must(Remove(x.pins))
	if err := reach(x.process(elsewhere, x.pod)); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("after removal: %v", err)
	}
	if err := second.Attach("/proc"); err == nil {
		t.Error("attached to what is no cgroup")
	}
}

package bpf

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
)

// Datagrams of real sockets by way of a proxy's.
func TestNodeQuestions(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcx", true: "clsact"}[clsact], func(t *testing.T) {
			n := newNode(t, clsact)
			for _, p := range []struct {
				ifindex int
				dev     string
				ns      *namespace
				policy  uint32
				id      uint32
				addrs   []netip.Addr
			}{
				{n.podA, "pod-a", n.a, policyA, idA, []netip.Addr{ipv4.a, ipv6.a}},
				{n.podB, "pod-b", n.b, policyB, idB, []netip.Addr{ipv4.b, ipv6.b}},
			} {
				e := Endpoint{Ifindex: uint32(p.ifindex), Policy: p.policy, Identity: p.id}
				copy(e.PodMac[:], linkMAC(n, p.ns, "eth0"))
				copy(e.HostMac[:], linkMAC(n, n.host, p.dev))
				for _, a := range p.addrs {
					n.must(n.Endpoints.Update(AddrOf(a), e))
				}
			}
			first := n.newAsker(1)
			for _, ip := range []addresses{ipv4, ipv6} {
				n.questions(ip, first)
			}
			n.succeed(first)
		})
	}
}

func (n *node) questions(ip addresses, a *asker) {
	t := n.t
	t.Helper()
	world := map[bool]identity.ID{true: identity.WorldIPv4, false: identity.WorldIPv6}[ip.v4]
	gateway := netip.MustParseAddr(map[bool]string{true: "10.1.255.1", false: "2001:db8::1"}[ip.v4])
	n.prefix(netip.PrefixFrom(gateway, gateway.BitLen()), identity.Host)
	const big = 4000
	n.forgetConns()
	asks := rules{}
	for _, id := range []identity.ID{idB, world, identity.Host} {
		asks[port(out, id, udp, echoPort)] = l7(1, 1)
		asks[port(out, id, udp, 9)] = l7(1, 1)
	}
	n.policy(policyA, asks)
	n.policy(policyB, rules{port(in, idA, udp, echoPort): allow(2), port(in, idA, udp, 9): allow(2)})
	for _, server := range []netip.Addr{ip.b, ip.world, gateway} {
		for _, size := range []int{1, 100, big} {
			before := a.seen.Load()
			n.can(n.a, "udp", server, echoPort, size)
			if a.seen.Load() == before {
				t.Errorf("%v was asked past the proxy", server)
			}
		}
		n.cannot(n.a, "udp", server, deniedPort, 100)
		// Nobody listens: the error reaches the socket that asked.
		c, err := n.dial(n.a, "udp", server, 9)
		n.must(err)
		got, err := say(c, "anyone?")
		if err != nil || got != "refused" {
			t.Errorf("%v, where nobody listens: %q, %v; %s", server, got, err, n.why())
		}
		letGo(c)
	}
	// What TCP there wants is another matter.
	n.cannot(n.a, "tcp", ip.b, echoPort, 100)
	n.cannot(n.b, "udp", ip.a, echoPort, 100)

	// One socket, and the policy moves under it.
	c, err := n.dial(n.a, "udp", ip.b, echoPort)
	n.must(err)
	defer letGo(c)
	talks := func(want bool, proxied bool) {
		t.Helper()
		var err error
		before := a.seen.Load()
		// What is on its way when policy moves is lost.
		for try := 0; try == 0 || want && err != nil && try < 3; try++ {
			err = exchange(c, []byte("hello"))
		}
		if (err == nil) != want || (a.seen.Load() != before) != proxied {
			t.Errorf("%v, the proxy saw %d datagrams; %s", err, a.seen.Load()-before, n.why())
		}
	}
	talks(true, true)
	n.policy(policyA, closed)
	talks(false, false)
	n.policy(policyA, rules{port(out, idB, udp, echoPort): allow(1)})
	talks(true, false)
	n.policy(policyA, asks)
	talks(true, true)
	n.policy(policyB, closed)
	talks(false, false)
	n.policy(policyB, nil)
	talks(true, true)
	// The proxy forgets the session.
	n.forgetConns()
	talks(true, true)
	// Conntrack forgets the flows.
	empty(n.kernel, n.Conntrack)
	talks(true, true)
	// The proxy is gone, and back.
	gone := a.entry
	gone.Alive = 0
	n.must(n.Proxies.Update(uint32(n.Generation()), gone))
	talks(false, false)
	n.must(n.Proxies.Update(uint32(n.Generation()), a.entry))
	talks(true, true)
}

// succeed: another proxy takes over, and the first one ends what it has begun.
func (n *node) succeed(first *asker) {
	t := n.t
	t.Helper()
	asks := rules{}
	for _, id := range []identity.ID{idB, identity.WorldIPv4, identity.WorldIPv6} {
		asks[port(out, id, udp, echoPort)] = l7(1, 1)
	}
	n.policy(policyA, asks)
	n.forgetConns()
	var sockets []net.Conn
	for _, server := range []netip.Addr{ipv4.b, ipv6.b, ipv4.world, ipv6.world} {
		c, err := n.dial(n.a, "udp", server, echoPort)
		n.must(err)
		defer letGo(c)
		if err := exchange(c, []byte("before")); err != nil {
			t.Errorf("%v: %v; %s", server, err, n.why())
		}
		sockets = append(sockets, c)
	}
	first.busy.Lock()
	saw := first.seen.Load() + int64(len(sockets))
	for _, c := range sockets {
		n.must(c.SetDeadline(time.Time{}))
		_, err := c.Write([]byte("in between"))
		n.must(err)
	}
	for deadline := time.Now().Add(5 * time.Second); first.seen.Load() != saw && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	second := n.newAsker(2)
	for _, c := range sockets {
		if err := exchange(c, []byte("after")); err != nil {
			t.Errorf("%v: %v; %s", c.RemoteAddr(), err, n.why())
		}
	}
	if first.seen.Load() != saw || second.seen.Load() != int64(len(sockets)) {
		t.Errorf("after its end the first one saw %d, the second %d", first.seen.Load()-saw, second.seen.Load())
	}
	first.busy.Unlock()
	for _, c := range sockets {
		b := make([]byte, 100)
		n.must(c.SetDeadline(time.Now().Add(2 * patience)))
		if size, err := c.Read(b); err != nil || string(b[:size]) != "in between" {
			t.Errorf("%v: the first one's answer: %q, %v; %s", c.RemoteAddr(), b[:size], err, n.why())
		}
	}
}

// say sends a datagram and returns what comes back.
func say(c net.Conn, what string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(what)); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	size, err := c.Read(b)
	return string(b[:size]), err
}

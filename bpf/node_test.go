package bpf

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
)

// node is a host of two routed pods with an outside behind masquerade, in
// namespaces of the test's own:
//
//	a --+
//	    +-- host -- world
//	b --+
type node struct {
	*kernel
	host, a, b, world *namespace
}

// Ports of the servers that run everywhere: what they are sent they send back.
const (
	echoPort   = 7000
	deniedPort = 7001
)

// sh runs commands, one a line, in the namespace.
func (ns *namespace) sh(t testing.TB, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		ns.do(func() {
			if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
		})
	}
	if t.Failed() {
		t.FailNow()
	}
}

func newNode(t *testing.T, clsact bool) *node {
	t.Helper()
	pins := mountPins(t)
	n := &node{host: newNamespace(t), a: newNamespace(t), b: newNamespace(t), world: newNamespace(t)}
	k := &kernel{t: t, ns: n.host}
	n.kernel = k
	n.host.sh(t, `
		ip link set lo up
		echo 1 > /proc/sys/net/ipv4/ip_forward
		echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
		echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter`)
	k.podA = n.host.veth(t, "pod-a", n.a, "eth0")
	k.podB = n.host.veth(t, "pod-b", n.b, "eth0")
	n.host.veth(t, "up0", n.world, "eth0")
	for _, p := range []struct {
		ns     *namespace
		dev    string
		v4, v6 netip.Addr
	}{{n.a, "pod-a", ipv4.a, ipv6.a}, {n.b, "pod-b", ipv4.b, ipv6.b}} {
		n.host.sh(t, fmt.Sprintf(`
			ip addr add 10.1.255.1/32 dev %[1]s
			ip addr add fe80::1/64 dev %[1]s nodad
			ip route add %[2]s dev %[1]s
			ip -6 route add %[3]s dev %[1]s`, p.dev, p.v4, p.v6))
		p.ns.sh(t, fmt.Sprintf(`
			ip link set lo up
			ip link set eth0 up
			ip addr add %s/32 dev eth0
			ip addr add %s/128 dev eth0 nodad
			ip route add 10.1.255.1 dev eth0
			ip route add default via 10.1.255.1
			ip -6 route add default via fe80::1 dev eth0`, p.v4, p.v6))
	}
	n.host.sh(t, fmt.Sprintf(`
		ip addr add 192.0.2.1/24 dev up0
		ip addr add 2001:db8::1/64 dev up0 nodad
		nft add table inet t
		nft 'add chain inet t post { type nat hook postrouting priority srcnat; }'
		nft 'add rule inet t post ip saddr 10.1.0.0/16 oifname up0 masquerade'
		nft 'add rule inet t post ip6 saddr fd01::/64 oifname up0 masquerade'
		nft 'add chain inet t pre { type nat hook prerouting priority dstnat; }'
		nft 'add rule inet t pre ip daddr 192.0.2.1 tcp dport 8000 dnat ip to %s:%d'
		nft 'add rule inet t pre ip6 daddr 2001:db8::1 tcp dport 8000 dnat ip6 to [%s]:%d'`, ipv4.b, echoPort, ipv6.b, echoPort))
	n.world.sh(t, `
		ip link set lo up
		ip link set eth0 up
		ip addr add 192.0.2.7/24 dev eth0
		ip addr add 2001:db8::7/64 dev eth0 nodad
		ip route add 10.1.0.0/16 via 192.0.2.1
		ip -6 route add fd01::/64 via 2001:db8::1`)
	for _, ns := range []*namespace{n.a, n.b, n.world, n.host} {
		n.serve(ns)
	}

	d, err := Load(Options{Pins: pins, Sizes: small, ForceClsact: clsact})
	k.must(err)
	k.Datapath = d
	t.Cleanup(func() { letGo(k.Datapath) })
	for _, ip := range []addresses{ipv4, ipv6} {
		k.must(k.Endpoints.Update(AddrOf(ip.a), Endpoint{Ifindex: uint32(k.podA), Policy: policyA, Identity: idA}))
		k.must(k.Endpoints.Update(AddrOf(ip.b), Endpoint{Ifindex: uint32(k.podB), Policy: policyB, Identity: idB}))
		k.prefix(netip.PrefixFrom(ip.a, ip.a.BitLen()), idA)
		k.prefix(netip.PrefixFrom(ip.b, ip.b.BitLen()), idB)
	}
	k.prefix(netip.MustParsePrefix("192.0.2.1/32"), identity.Host)
	k.prefix(netip.MustParsePrefix("2001:db8::1/128"), identity.Host)
	k.must(k.Devices.Update(uint32(k.podA), Device{Policy: policyA, Identity: idA}))
	k.must(k.Devices.Update(uint32(k.podB), Device{Policy: policyB, Identity: idB}))
	k.policy(policyA, nil)
	k.policy(policyB, nil)
	n.host.do(func() { err = errors.Join(d.AttachPod(k.podA), d.AttachPod(k.podB)) })
	k.must(err)
	return n
}

// Real sockets over real veths: what is allowed works, what isn't doesn't.
func TestNode(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcx", true: "clsact"}[clsact], func(t *testing.T) {
			n := newNode(t, clsact)
			for _, ip := range []addresses{ipv4, ipv6} {
				n.traffic(ip)
			}
		})
	}
}

func (n *node) traffic(ip addresses) {
	outside := ip.world
	nodeIP := netip.MustParseAddr(map[bool]string{true: "192.0.2.1", false: "2001:db8::1"}[ip.v4])
	world := map[bool]identity.ID{true: identity.WorldIPv4, false: identity.WorldIPv6}[ip.v4]
	const big = 4000 // in fragments

	// No policy.
	n.policy(policyA, nil)
	n.policy(policyB, nil)
	for _, network := range []string{"tcp", "udp"} {
		for _, size := range []int{100, big} {
			n.can(n.a, network, ip.b, echoPort, size)
			n.can(n.a, network, outside, echoPort, size)
			n.can(n.world, network, ip.b, echoPort, size)
			n.can(n.host, network, ip.b, echoPort, size)
			if network == "tcp" { // the servers answer UDP from any address
				n.can(n.a, network, nodeIP, echoPort, size)
			}
		}
	}
	n.can(n.world, "tcp", nodeIP, 8000, 100)
	if err := n.ping(n.a, ip, ip.b, big); err != nil {
		n.t.Errorf("ping: %v; %s", err, n.why())
	}

	// Closed.
	n.policy(policyA, closed)
	n.policy(policyB, closed)
	for _, network := range []string{"tcp", "udp"} {
		n.cannot(n.a, network, ip.b, echoPort, 100)
		n.cannot(n.a, network, outside, echoPort, big)
		// Parts of a datagram that the host put together and took apart again
		// are not its own.
		n.cannot(n.world, network, ip.b, echoPort, big)
		n.cannot(n.a, network, nodeIP, echoPort, 100)
		n.can(n.host, network, ip.b, echoPort, 100)
		n.can(n.host, network, ip.b, echoPort, big)
	}
	n.cannot(n.world, "tcp", nodeIP, 8000, 100)
	if n.ping(n.a, ip, ip.b, 100) == nil {
		n.t.Error("ping passes closed pods")
	}
	if err := n.ping(n.host, ip, ip.b, big); err != nil {
		n.t.Errorf("the node's ping: %v; %s", err, n.why())
	}

	// Some ports of some peers.
	a, b := rules{}, rules{}
	for _, proto := range []uint8{tcp, udp} {
		a[port(out, idB, proto, echoPort)] = allow(1)
		a[port(out, world, proto, echoPort)] = allow(2)
		b[port(in, idA, proto, echoPort)] = allow(3)
		b[port(in, world, proto, echoPort)] = allow(4)
	}
	a[port(out, idB, ip.icmp, uint16(ip.echo))] = allow(5)
	b[port(in, idA, ip.icmp, uint16(ip.echo))] = allow(6)
	n.policy(policyA, a)
	n.policy(policyB, b)
	for _, network := range []string{"tcp", "udp"} {
		for _, size := range []int{100, big} {
			n.can(n.a, network, ip.b, echoPort, size)
			n.can(n.a, network, outside, echoPort, size)
			n.can(n.world, network, ip.b, echoPort, size)
		}
		n.cannot(n.a, network, ip.b, deniedPort, 100)
		n.cannot(n.a, network, outside, deniedPort, 100)
		n.cannot(n.world, network, ip.b, deniedPort, 100)
		n.cannot(n.b, network, ip.a, echoPort, 100)
	}
	n.can(n.world, "tcp", nodeIP, 8000, 100)
	for _, size := range []int{100, big} {
		if err := n.ping(n.a, ip, ip.b, size); err != nil {
			n.t.Errorf("ping of %d bytes: %v; %s", size, err, n.why())
		}
	}
	if n.ping(n.b, ip, ip.a, 100) == nil {
		n.t.Error("ping the other way passes")
	}
	n.live(ip, a, b)
}

// live: a connection across restarts of the agent and changes of policy.
func (n *node) live(ip addresses, a, b rules) {
	t := n.t
	t.Helper()
	c, err := n.dial(n.a, "tcp", ip.b, echoPort)
	n.must(err)
	defer c.Close()
	n.must(exchange(c, []byte("before")))
	// Another agent takes over.
	opts := n.opts
	n.must(n.Close())
	n.must(exchange(c, []byte("without an agent")))
	n.closedAlone(ip)
	d, err := Load(opts)
	n.must(err)
	n.Datapath = d
	n.host.do(func() { err = d.Activate() })
	n.must(err)
	n.must(exchange(c, []byte("with the next agent")))
	// Its rule goes and comes back: TCP goes on.
	n.policy(policyB, closed)
	if exchange(c, []byte("revoked")) == nil {
		t.Error("a revoked connection goes on")
	}
	n.policy(policyB, b)
	n.must(c.SetDeadline(time.Now().Add(5 * time.Second)))
	got := make([]byte, len("revoked"))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "revoked" {
		t.Errorf("after the rule came back: %q, %v; %s", got, err, n.why())
	}
	// It now needs a proxy: both ends are reset, though there is none yet for
	// one of them.
	l7B := rules{}
	for k, v := range b {
		if k.Protocol == tcp {
			v = l7(9, 1)
		}
		l7B[k] = v
	}
	n.policy(policyB, l7B)
	if err := exchange(c, []byte("x")); err == nil {
		t.Error("goes on without the proxy it needs")
	}
	n.policy(policyB, b)
	// A closed port's RST and a port unreachable come back through.
	a[port(out, idB, tcp, 9)] = allow(7)
	b[port(in, idA, tcp, 9)] = allow(7)
	a[port(out, idB, udp, 9)] = allow(7)
	b[port(in, idA, udp, 9)] = allow(7)
	n.policy(policyA, a)
	n.policy(policyB, b)
	for _, network := range []string{"tcp", "udp"} {
		if err := n.reaches(n.a, network, ip.b, 9, 10); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to a port nobody listens on: %v; %s", network, err, n.why())
		}
	}
}

// closedAlone: with no agent, policy holds.
func (n *node) closedAlone(ip addresses) {
	n.t.Helper()
	if n.reaches(n.a, "tcp", ip.b, deniedPort, 100) == nil {
		n.t.Error("a denied port is open without an agent")
	}
}

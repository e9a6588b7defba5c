package bpf

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// The kernel's search and policy.Lookup in Go give the same verdict, rule and
// rule set, for random policies and random flows.
func TestKernelAgreesWithLookup(t *testing.T) {
	k := newKernel(t)
	const (
		cidr = identity.ID(500)
		name = identity.ID(501)
		both = identity.ID(502)
	)
	k.prefix(netip.MustParsePrefix("192.0.2.0/24"), cidr)
	k.prefix(netip.MustParsePrefix("2001:db8::/64"), cidr)
	k.must(k.FQDN.Update(AddrOf(ipv4.world), uint32(name)))
	k.must(k.FQDN.Update(AddrOf(ipv6.world), uint32(name)))

	k.must(k.Names.Update(uint32(name), 1))

	const seed = 20240614
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(from ...uint8) uint8 { return from[r.IntN(len(from))] }
	ids := []identity.ID{0, 0, idPeer, idB, cidr, name, both, identity.WorldIPv4}
	ports := []uint16{0, 1, 8, 79, 80, 81, 128, 443, 8080, 32768, 65535}
	randomPolicy := func() rules {
		m := rules{}
		for range r.IntN(12) {
			key := policy.Key{
				Direction: policy.Direction(r.IntN(2)), Identity: ids[r.IntN(len(ids))],
				Protocol: pick(0, tcp, tcp, tcp, udp, sctp, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6),
			}
			if key.Protocol != 0 {
				key.PortBits = uint8(r.IntN(17))
				if r.IntN(2) == 0 {
					key.PortBits = 16
				}
				key.Port = ports[r.IntN(len(ports))] & uint16(0xffff<<(16-key.PortBits))
			}
			e := policy.Entry{Action: policy.Action(pick(1, 2, 2, 2, 3, 3, 4)), Rule: r.Uint32()}
			switch e.Action {
			case policy.Redirect:
				e.RuleSet = r.Uint32()
			case policy.Refuse:
				e.Reason = policy.RefuseReason(1 + r.IntN(4))
			}
			m[key] = e
		}
		return m
	}

	rounds := 400
	if testing.Short() {
		rounds = 40
	}
	seen := map[flow.Reason]int{}
	for round := range rounds {
		m := randomPolicy()
		k.policy(policyA, m)
		for range 30 {
			empty(k, k.Conntrack)
			k.forgetConns()
			ip := []addresses{ipv4, ipv6}[r.IntN(2)]
			dir := policy.Direction(r.IntN(2))
			peer, peers := ip.peer, []identity.ID{idPeer}
			switch r.IntN(3) {
			case 0:
				peer, peers = ip.world, []identity.ID{cidr}
				if dir == out { // names are where a pod goes to
					peers = append(peers, name)
					if r.IntN(2) == 0 {
						peers = append([]identity.ID{both}, peers...)
						k.must(k.Pairs.Update(Pair{Outside: uint32(cidr), Names: uint32(name)}, uint32(both)))
					} else {
						empty(k, k.Pairs)
					}
				}
			case 1:
				if dir == out {
					peer, peers = ip.b, []identity.ID{idB}
				}
			}
			p := packet{
				src: ip.a, dst: peer, proto: pick(tcp, tcp, udp, sctp, ip.icmp, 47),
				sport: uint16(r.IntN(65536)), dport: ports[r.IntN(len(ports))], flags: syn, icmp: ip.echo,
			}
			where := k.fromA()
			if dir == in {
				p.src, p.dst = p.dst, p.src
				where = k.toA()
			}
			judgedPort, judgedProto := p.dport, p.proto
			switch p.proto {
			case ip.icmp:
				judgedPort = uint16(p.icmp)
			case 47:
				judgedPort, judgedProto = 0, 0
			}
			e, ok := policy.Lookup(m, dir, peers, judgedProto, judgedPort)
			verdict, reason := expected(e, ok, p.proto, dir)
			got, _, _ := k.run(where, p.bytes())
			events := k.drain()
			if got != verdict || len(events) != 1 || events[0].Reason != reason || events[0].Rule != e.Rule {
				t.Fatalf("seed %d, round %d: %v %v: kernel %d %+v, Lookup %+v %v\npolicy %v", seed, round, dir, p.tuple(), int32(got), events, e, ok, m)
			}
			if verdict == redirect {
				if c := k.conn(p); c == nil || c.RuleSet[dir] != e.RuleSet || c.Rule[dir] != e.Rule || c.L7&^(ConnLocal<<in|ConnLocal<<out) != 1<<dir {
					t.Fatalf("round %d: %v: conn %+v, Lookup %+v", round, p.tuple(), c, e)
				}
			}
			seen[reason]++
		}
	}
	for _, want := range []flow.Reason{
		flow.ReasonPolicyAllowed, flow.ReasonPolicyDenied, flow.ReasonPolicyDenyRule, flow.ReasonRedirected,
		flow.ReasonPolicyRefused, flow.ReasonL7Unsupported, flow.ReasonL7Conflict, flow.ReasonUnknownL4,
	} {
		if seen[want] == 0 {
			t.Errorf("no flow came out as %v: %v", want, seen)
		}
	}
}

// expected is what the datapath makes of an answer of policy.Lookup.
func expected(e policy.Entry, ok bool, proto uint8, dir policy.Direction) (uint32, flow.Reason) {
	switch {
	case !ok && proto == 47:
		return dropped, flow.ReasonUnknownL4
	case !ok:
		return dropped, flow.ReasonPolicyDenied
	}
	switch e.Action {
	case policy.Deny:
		return dropped, flow.ReasonPolicyDenyRule
	case policy.Allow:
		return pass, flow.ReasonPolicyAllowed
	case policy.Redirect:
		if proto != tcp && (proto != udp || dir != out) {
			return dropped, flow.ReasonL7Unsupported
		}
		return redirect, flow.ReasonRedirected
	}
	return dropped, map[policy.RefuseReason]flow.Reason{
		policy.RefusedPolicy: flow.ReasonPolicyRefused, policy.RefusedL7Unsupported: flow.ReasonL7Unsupported,
		policy.RefusedL7Conflict: flow.ReasonL7Conflict, policy.RefusedBackends: flow.ReasonServiceBackends,
	}[e.Reason]
}

// The numbers that C and Go both spell.
func TestNumbersAgree(t *testing.T) {
	for c, g := range map[datapathAction]policy.Action{
		datapathActionACTION_DENY: policy.Deny, datapathActionACTION_ALLOW: policy.Allow,
		datapathActionACTION_REDIRECT: policy.Redirect, datapathActionACTION_REFUSE: policy.Refuse,
	} {
		if uint8(c) != uint8(g) {
			t.Errorf("action %d in C, %d in Go", c, g)
		}
	}
	for c, g := range map[datapathDirection]policy.Direction{
		datapathDirectionDIRECTION_INGRESS: policy.Ingress, datapathDirectionDIRECTION_EGRESS: policy.Egress,
	} {
		if uint8(c) != uint8(g) {
			t.Errorf("direction %d in C, %d in Go", c, g)
		}
	}
	for c, g := range map[datapathVerdict]flow.Verdict{
		datapathVerdictVERDICT_DROPPED: flow.Dropped, datapathVerdictVERDICT_FORWARDED: flow.Forwarded,
		datapathVerdictVERDICT_REDIRECTED: flow.Redirected,
	} {
		if uint8(c) != uint8(g) {
			t.Errorf("verdict %d in C, %d in Go", c, g)
		}
	}
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	var reasons *btf.Enum
	if err := spec.Types.TypeByName("reason", &reasons); err != nil {
		t.Fatal(err)
	}
	if len(reasons.Values) != len(flow.Reasons()) {
		t.Fatalf("%d reasons in C, %d in Go", len(reasons.Values), len(flow.Reasons()))
	}
	for i, r := range flow.Reasons() {
		want := "REASON_" + strings.ToUpper(strings.ReplaceAll(r.String(), "-", "_"))
		if v := reasons.Values[i]; v.Name != want || v.Value != uint64(r) {
			t.Errorf("%s = %d in C, %s = %d in Go", v.Name, v.Value, want, r)
		}
		if r.Explanation() == "" {
			t.Errorf("%v is not explained", r)
		}
		if back, ok := flow.ParseReason(r.String()); !ok || back != r {
			t.Errorf("%v does not parse", r)
		}
	}
}

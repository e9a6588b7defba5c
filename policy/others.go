package policy

import (
	"fmt"
	"slices"
	"strings"
)

// others says of every rule that selects the pod, but for the one that
// decided, why it did not decide.
func (x *explanation) others(f *enforcement, other end, p *peer, port uint16, decided *Side) []Other {
	var out []Other
	for _, r := range f.rules() {
		if f.closed != nil && r != f.closed && r.closed {
			out = append(out, Other{r.policy.ref(r.path), "refused as well"})
			continue
		}
		if r.closed {
			continue
		}
		if f.closed != nil {
			out = append(out, Other{r.policy.ref(r.path), "does not count: a refused policy closes the pod"})
			continue
		}
		if len(r.grants) == 0 || !r.any && len(r.peers) == 0 {
			out = append(out, Other{r.policy.ref(r.path), nothing(r)})
			continue
		}
		if !r.any && !slices.ContainsFunc(r.peers, func(s *selector) bool { return s.selects(p) }) {
			out = append(out, Other{r.policy.ref(r.path), other.name + " is not among its peers: " + peersText(r)})
			continue
		}
		for _, g := range f.grants() {
			if g.rule != r || r.policy.name == decided.Policy && (g.from.path == decided.Rule || strings.HasPrefix(decided.Rule, g.from.path+".rules.")) {
				continue
			}
			if !slices.ContainsFunc(g.portsFor(p), func(q ports) bool { return q.contains(x.proto, port) }) {
				out = append(out, Other{r.policy.ref(g.from.path), x.flowText(port) + " is not among its ports: " + portsText(g, p)})
				continue
			}
			out = append(out, Other{r.policy.ref(g.from.path), overruled(g, decided)})
		}
	}
	return slices.CompactFunc(out, func(a, b Other) bool { return a == b })
}

func nothing(r *rule) string {
	what := "allows"
	if r.deny {
		what = "denies"
	}
	return what + " nothing: it names no peer that exists, or no port"
}

func overruled(g *grant, decided *Side) string {
	switch {
	case g.rule.deny:
		return "denies it as well"
	case decided.Verdict == Denied && g.l7() != 0:
		return "matches, but its " + g.l7().String() + " rules don't let it pass"
	case decided.Verdict == Denied:
		return "allows it, but is overruled"
	case g.l7() != 0:
		return "matches, and its " + g.l7().String() + " rules count as well"
	}
	return "allows it as well"
}

func peersText(r *rule) string {
	parts := make([]string, len(r.peers))
	for i, s := range r.peers {
		parts[i] = s.text
	}
	return strings.Join(slices.Compact(parts), "; ")
}

func (x *explanation) flowText(port uint16) string {
	switch {
	case x.proto == protoICMP || x.proto == protoICMPv6:
		return fmt.Sprintf("%s type %d", protocolName(x.proto), port)
	case !hasPorts(x.proto):
		return "protocol " + protocolName(x.proto)
	}
	return fmt.Sprintf("%s port %d", protocolName(x.proto), port)
}

// portsText spells the ports of a grant, prefixes joined to ranges again.
func portsText(g *grant, p *peer) string {
	var parts []string
	ps := g.portsFor(p)
	for i := 0; i < len(ps); i++ {
		q := ps[i]
		first, last := uint32(q.port), uint32(q.port)+1<<(16-q.bits)-1
		for i+1 < len(ps) && ps[i+1].proto == q.proto && uint32(ps[i+1].port) == last+1 && q.bits != 0 {
			i++
			last += 1 << (16 - ps[i].bits)
		}
		name := protocolName(q.proto)
		switch {
		case q.proto == 0:
			parts = append(parts, "all")
		case q.bits == 0:
			parts = append(parts, name)
		case first == last:
			parts = append(parts, fmt.Sprintf("%s %d", name, first))
		default:
			parts = append(parts, fmt.Sprintf("%s %d-%d", name, first, last))
		}
	}
	for _, n := range g.from.names {
		parts = append(parts, "the port named "+n.name)
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func protocolName(proto uint8) string {
	switch proto {
	case protoTCP:
		return "TCP"
	case protoUDP:
		return "UDP"
	case protoSCTP:
		return "SCTP"
	case protoICMP:
		return "ICMP"
	case protoICMPv6:
		return "ICMPv6"
	}
	return fmt.Sprint("protocol ", proto)
}

// rules are those that select the subject, in order.
func (f *enforcement) rules() (out []*rule) {
	for _, c := range f.list {
		out = append(out, c.rules...)
	}
	return out
}

func (f *enforcement) grants() (out []*grant) {
	for _, c := range f.list {
		out = append(out, c.grants...)
	}
	return out
}

package redirect

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

// recordOf is the flow record of a request or a question, and the rule that
// decided.
func recordOf(r *control.Record) (*flow.Record, uint32) {
	rec := &flow.Record{
		Time: time.Unix(0, r.Time), Layer: "L7", Verdict: flow.Dropped, Reason: r.Reason, Protocol: "TCP",
		Source: peerOf(r.Source, r.SourcePort, r.SourceIdentity),
		Dest:   peerOf(r.Destination, r.DestinationPort, r.DestinationIdentity),
	}
	if r.Dns != nil {
		rec.Protocol, rec.DNS = r.Protocol, questionOf(r.Dns, time.Duration(r.Latency))
	} else {
		rec.HTTP = &flow.HTTP{
			Method: string(r.Method), Host: string(r.Host), Path: string(r.Path), Protocol: r.Protocol,
			Status: int(r.Status), Latency: time.Duration(r.Latency),
		}
	}
	if r.Allowed {
		rec.Verdict = flow.Forwarded
	}
	rules := [2]uint32{}
	copy(rules[:], r.Rules)
	direction := policy.Direction(r.Judge)
	if r.Judge > 1 {
		switch r.Directions {
		case 1 << policy.Ingress:
			direction = policy.Ingress
		case 1 << policy.Egress:
			direction = policy.Egress
		default: // both ends
			if rules[policy.Egress] != 0 {
				return rec, rules[policy.Egress]
			}
			return rec, rules[policy.Ingress]
		}
	}
	rec.Direction = direction.String()
	return rec, rules[direction]
}

// questionOf is a question as people read it.
func questionOf(q *control.DNS, latency time.Duration) *flow.DNS {
	out := &flow.DNS{Name: q.Name, Chain: q.Chain, Latency: latency}
	if q.Name == "" {
		return out // of a message that can't be read
	}
	out.Type = dns.Type(q.Type).String()
	if q.Class != dns.ClassINET {
		out.Class = dns.Class(q.Class).String()
	}
	if q.Answered {
		if out.RCode = dns.RcodeToString[int(q.Rcode)]; out.RCode == "" {
			out.RCode = "RCODE" + strconv.Itoa(int(q.Rcode))
		}
	}
	for _, b := range q.Addresses {
		if a, ok := netip.AddrFromSlice(b); ok {
			out.Addresses = append(out.Addresses, a)
		}
	}
	return out
}

func peerOf(addr []byte, port, identity uint32) flow.Peer {
	a, _ := netip.AddrFromSlice(addr)
	return flow.Peer{Addr: a, Port: uint16(port), Identity: identity}
}

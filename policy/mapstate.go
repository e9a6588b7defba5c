package policy

import "github.com/weirnet/weir/identity"

// Direction is seen from the pod whose policy is meant.
type Direction uint8

const (
	Ingress Direction = 0
	Egress  Direction = 1
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Action is what an entry of the policy map says.
type Action uint8

const (
	// Deny beats everything, at any specificity.
	Deny Action = 1
	// Allow lets the flow pass in the kernel.
	Allow Action = 2
	// Redirect sends the flow to the proxy, which applies RuleSet.
	Redirect Action = 3
	// Refuse stands where a Redirect would, but for rules that Weir does not
	// enforce yet (Kafka, SNI) or policies it had to refuse, and for services
	// whose backends are not all allowed: the flow is dropped with Reason.
	Refuse Action = 4
)

// Key is one key of a policy's map, less the policy id. The most general key
// of a direction is all zero but for Direction.
type Key struct {
	Direction Direction
	Identity  identity.ID // identity.Any: every peer
	Protocol  uint8       // IANA number; 0: every protocol
	Port      uint16      // host byte order; ICMP: the type. Bits beyond PortBits are 0
	PortBits  uint8       // leading bits of Port that count: 16 one port, 0 all (of Protocol)
}

// Entry is what Key maps to.
type Entry struct {
	Action  Action
	Reason  RefuseReason // of Refuse only
	RuleSet uint32       // of Redirect only
	Rule    uint32       // the rule that decides, see Engine.Rule; 0: none
}

// RefuseReason tells why an entry refuses.
type RefuseReason uint8

const (
	RefusedNone          RefuseReason = 0
	RefusedPolicy        RefuseReason = 1 // the policy object was refused, its subjects are closed
	RefusedL7Unsupported RefuseReason = 2 // L7 rules of a kind that is not enforced
	RefusedL7Conflict    RefuseReason = 3 // rules of two L7 kinds on one peer and port
	RefusedBackends      RefuseReason = 4 // an address of a service, not all of whose backends are allowed
)

// Lookup is the search the kernel does in a policy's map, step by step the
// same (bpf/policy.h), so that what is tested and explained here is what is
// enforced there. For each of the peer's identities and then for any peer:
// the exact port, port prefixes from long to short, all ports of the
// protocol, all protocols.
// One Deny anywhere denies. Else the first Redirect or Refuse found counts,
// else the first Allow. ok is false if nothing was found: default deny.
func Lookup(m map[Key]Entry, dir Direction, peers []identity.ID, proto uint8, port uint16) (e Entry, ok bool) {
	return lookup(m, dir, peers, ports{proto: proto, port: port, bits: 16})
}

// lookup is Lookup for those of these ports that no entry for fewer is about.
func lookup(m map[Key]Entry, dir Direction, peers []identity.ID, at ports) (e Entry, ok bool) {
	var redirect, allow Entry
	consider := func(k Key) (denied bool) {
		v, found := m[k]
		if !found {
			return false
		}
		switch v.Action {
		case Deny:
			e, ok = v, true
			return true
		case Redirect, Refuse:
			if redirect.Action == 0 {
				redirect = v
			}
		case Allow:
			if allow.Action == 0 {
				allow = v
			}
		}
		return false
	}
	for i := 0; i <= len(peers); i++ {
		id := identity.Any
		if i < len(peers) {
			if id = peers[i]; id == identity.Any {
				continue
			}
		}
		if at.proto != 0 {
			for bits := int(at.bits); bits >= 0; bits-- {
				k := Key{Direction: dir, Identity: id, Protocol: at.proto, PortBits: uint8(bits)}
				k.Port = at.port & uint16(0xffff<<(16-bits))
				if consider(k) {
					return e, ok
				}
			}
		}
		if consider(Key{Direction: dir, Identity: id}) {
			return e, ok
		}
	}
	if redirect.Action != 0 {
		return redirect, true
	}
	return allow, allow.Action != 0
}

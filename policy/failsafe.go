package policy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weirnet/weir/policy/api"
)

// Failsafe is traffic of a node that passes whatever policies for nodes say, so
// that none of them can lock its operators out.
type Failsafe struct {
	// Name is what it is for; several may have the same.
	Name      string
	Direction Direction // seen from the node
	Protocol  uint8
	// First to Last are destination ports, of ICMP the types.
	First, Last uint16
	Peers       FailsafePeers
	// ControlPlane: on nodes only that run the control plane.
	ControlPlane bool
}

// FailsafePeers tells with whom.
type FailsafePeers uint8

const (
	FailsafeAnyone FailsafePeers = iota
	// FailsafeAPIServers are the endpoints of service default/kubernetes, at the
	// ports written there; First and Last don't count.
	FailsafeAPIServers
	// FailsafeResolvers are HostAddresses.Resolvers, likewise.
	FailsafeResolvers
	// FailsafeNodes are the other nodes of the cluster.
	FailsafeNodes
)

// DefaultFailsafe is what a node needs to be reached and to find its cluster.
func DefaultFailsafe() []Failsafe {
	return []Failsafe{
		{"kubelet", Ingress, protoTCP, 10250, 10250, FailsafeAnyone, false},
		{"api-server", Egress, protoTCP, 0, 0, FailsafeAPIServers, false},
		{"api-server", Ingress, protoTCP, 6443, 6443, FailsafeAnyone, true},
		{"etcd", Ingress, protoTCP, 2379, 2380, FailsafeAnyone, true},
		{"etcd", Egress, protoTCP, 2379, 2380, FailsafeAnyone, true},
		{"ssh", Ingress, protoTCP, 22, 22, FailsafeAnyone, false},
		{"dhcp", Egress, protoUDP, 67, 67, FailsafeAnyone, false},
		{"dhcp", Ingress, protoUDP, 68, 68, FailsafeAnyone, false},
		{"dhcp", Egress, protoUDP, 547, 547, FailsafeAnyone, false},
		{"dhcp", Ingress, protoUDP, 546, 546, FailsafeAnyone, false},
		{"dns", Egress, protoUDP, 0, 0, FailsafeResolvers, false},
		{"dns", Egress, protoTCP, 0, 0, FailsafeResolvers, false},
		// Unreachable, which tells of smaller MTUs, too; and of ICMPv6 too big,
		// and discovery of neighbors and of who listens to multicast.
		{"icmp", Ingress, protoICMP, 3, 3, FailsafeAnyone, false},
		{"icmp", Egress, protoICMP, 3, 3, FailsafeAnyone, false},
		{"icmp", Ingress, protoICMPv6, 1, 2, FailsafeAnyone, false},
		{"icmp", Egress, protoICMPv6, 1, 2, FailsafeAnyone, false},
		{"icmp", Ingress, protoICMPv6, 130, 137, FailsafeAnyone, false},
		{"icmp", Egress, protoICMPv6, 130, 137, FailsafeAnyone, false},
		{"icmp", Ingress, protoICMPv6, 143, 143, FailsafeAnyone, false},
		{"icmp", Egress, protoICMPv6, 143, 143, FailsafeAnyone, false},
		// What carries pods' traffic between nodes: VXLAN, Geneve, WireGuard, and
		// IP in IP, GRE, ESP. What is in it is judged where it comes out.
		{"overlay", Ingress, protoUDP, 8472, 8472, FailsafeNodes, false},
		{"overlay", Egress, protoUDP, 8472, 8472, FailsafeNodes, false},
		{"overlay", Ingress, protoUDP, 4789, 4789, FailsafeNodes, false},
		{"overlay", Egress, protoUDP, 4789, 4789, FailsafeNodes, false},
		{"overlay", Ingress, protoUDP, 6081, 6081, FailsafeNodes, false},
		{"overlay", Egress, protoUDP, 6081, 6081, FailsafeNodes, false},
		{"overlay", Ingress, protoUDP, 51820, 51821, FailsafeNodes, false},
		{"overlay", Egress, protoUDP, 51820, 51821, FailsafeNodes, false},
		{"overlay", Ingress, 4, 0, 0, FailsafeNodes, false},
		{"overlay", Egress, 4, 0, 0, FailsafeNodes, false},
		{"overlay", Ingress, 41, 0, 0, FailsafeNodes, false},
		{"overlay", Egress, 41, 0, 0, FailsafeNodes, false},
		{"overlay", Ingress, 47, 0, 0, FailsafeNodes, false},
		{"overlay", Egress, 47, 0, 0, FailsafeNodes, false},
		{"overlay", Ingress, 50, 0, 0, FailsafeNodes, false},
		{"overlay", Egress, 50, 0, 0, FailsafeNodes, false},
	}
}

// ParseFailsafe reads a list of what is to be fail-safe. An item is a Name of
// DefaultFailsafe, "default" for all of them, or DIRECTION:PROTOCOL/PORTS with
// in or out, tcp, udp, sctp, icmp or icmpv6, and a port, a type of ICMP, or a
// range of either: "in:tcp/9100", "out:udp/5000-5010". "none", alone, is the
// empty list.
func ParseFailsafe(items []string) ([]Failsafe, error) {
	out := []Failsafe{}
	for _, item := range items {
		item = strings.ToLower(strings.TrimSpace(item))
		switch {
		case item == "none" && len(items) == 1:
			return out, nil
		case item == "none":
			return nil, errors.New("none does not go with others")
		case strings.Contains(item, ":"):
			f, err := parseFailsafe(item)
			if err != nil {
				return nil, err
			}
			out = append(out, f)
		default:
			before := len(out)
			for _, f := range DefaultFailsafe() {
				if item == "default" || f.Name == item {
					out = append(out, f)
				}
			}
			if len(out) == before {
				return nil, fmt.Errorf("%q is no fail-safe: it is none of %s, nor like in:tcp/9100", item, strings.Join(failsafeNames(), ", "))
			}
		}
	}
	return out, nil
}

// failsafeNames are the words ParseFailsafe knows.
func failsafeNames() []string {
	names := []string{"default", "none"}
	for _, f := range DefaultFailsafe() {
		if !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

func parseFailsafe(item string) (Failsafe, error) {
	f := Failsafe{Name: item}
	direction, rest, _ := strings.Cut(item, ":")
	protocol, ports, ok := strings.Cut(rest, "/")
	switch {
	case direction == "out":
		f.Direction = Egress
	case direction != "in" || !ok:
		return f, fmt.Errorf("%q is no fail-safe: want in or out, a protocol and ports, as in in:tcp/9100", item)
	}
	largest := uint64(65535)
	switch protocol {
	case "tcp", "udp", "sctp":
		f.Protocol = api.Protocol(strings.ToUpper(protocol)).Numbers()[0]
	case "icmp":
		f.Protocol, largest = protoICMP, 255
	case "icmpv6":
		f.Protocol, largest = protoICMPv6, 255
	default:
		return f, fmt.Errorf("fail-safe %q: protocol %q is none of tcp, udp, sctp, icmp, icmpv6", item, protocol)
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	lo, err1 := strconv.ParseUint(first, 10, 16)
	hi, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || lo > hi || hi > largest || lo == 0 && largest == 65535 {
		return f, fmt.Errorf("fail-safe %q: %q is no port or range of ports", item, ports)
	}
	f.First, f.Last = uint16(lo), uint16(hi)
	return f, nil
}

// String spells it for people: "ssh: in TCP 22".
func (f Failsafe) String() string {
	direction, ports := "in", ""
	if f.Direction == Egress {
		direction = "out"
	}
	switch {
	case f.Peers == FailsafeAPIServers:
		ports = " to the API servers"
	case f.Peers == FailsafeResolvers:
		ports = " to the node's resolvers"
	case f.Protocol != protoICMP && f.Protocol != protoICMPv6 && !hasPorts(f.Protocol):
	case f.First == f.Last:
		ports = fmt.Sprintf(" %d", f.First)
	default:
		ports = fmt.Sprintf(" %d-%d", f.First, f.Last)
	}
	if f.Protocol == protoICMP || f.Protocol == protoICMPv6 {
		ports = " type" + ports
	}
	text := fmt.Sprintf("%s %s%s", direction, protocolName(f.Protocol), ports)
	if f.Peers == FailsafeNodes {
		text += " of other nodes"
	}
	if strings.Contains(f.Name, ":") {
		return text
	}
	return f.Name + ": " + text
}

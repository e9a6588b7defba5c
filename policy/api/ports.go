package api

import (
	"slices"
	"strconv"
	"strings"
)

// Protocol is the protocol of a port; empty: ProtocolAny.
// +kubebuilder:validation:Enum=TCP;UDP;SCTP;ANY;VRRP;IGMP;GRE;IPIP;IPV6;ESP;AH
type Protocol string

// The protocols a port may have. Any stands for TCP, UDP and SCTP. Those
// after it have no ports: Port is empty or "0" with them.
const (
	ProtocolTCP  Protocol = "TCP"
	ProtocolUDP  Protocol = "UDP"
	ProtocolSCTP Protocol = "SCTP"
	ProtocolAny  Protocol = "ANY"
	ProtocolVRRP Protocol = "VRRP"
	ProtocolIGMP Protocol = "IGMP"
	ProtocolGRE  Protocol = "GRE"
	ProtocolIPIP Protocol = "IPIP"
	ProtocolIPv6 Protocol = "IPV6"
	ProtocolESP  Protocol = "ESP"
	ProtocolAH   Protocol = "AH"
)

// Numbers returns the IANA numbers of the protocols meant; nil if unknown.
func (p Protocol) Numbers() []uint8 {
	switch p {
	case ProtocolTCP:
		return []uint8{6}
	case ProtocolUDP:
		return []uint8{17}
	case ProtocolSCTP:
		return []uint8{132}
	case ProtocolAny, "":
		return []uint8{6, 17, 132}
	case ProtocolIGMP:
		return []uint8{2}
	case ProtocolIPIP:
		return []uint8{4}
	case ProtocolIPv6:
		return []uint8{41}
	case ProtocolGRE:
		return []uint8{47}
	case ProtocolESP:
		return []uint8{50}
	case ProtocolAH:
		return []uint8{51}
	case ProtocolVRRP:
		return []uint8{112}
	}
	return nil
}

// HasPorts tells whether packets of the protocol carry ports.
func (p Protocol) HasPorts() bool {
	switch p {
	case ProtocolTCP, ProtocolUDP, ProtocolSCTP, ProtocolAny, "":
		return true
	}
	return false
}

// PortProtocol is a port by number or name, or a range of ports.
type PortProtocol struct {
	// A number or a name, as text: "443", "https"; "0" stands for all ports.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*$`
	Port string `json:"port,omitempty"`
	// The last port of a range that begins with port.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	EndPort int32 `json:"endPort,omitempty"`
	// TCP, UDP, SCTP, ANY (these three, if not written), or a protocol without ports.
	// +optional
	Protocol Protocol `json:"protocol,omitempty"`
}

// Name returns the name of a named port, in lower case; "" for a number.
func (p PortProtocol) Name() string {
	if isServiceName(p.Port) {
		return strings.ToLower(p.Port)
	}
	return ""
}

// Range returns the first and last port of one that is not named. 0, 0 means
// all ports. An EndPort below the first port does not count. Where a named
// port was resolved to a number, put it into Port to get the range from there.
// ok is false for names and for what is no port.
func (p PortProtocol) Range() (first, last uint16, ok bool) {
	if isServiceName(p.Port) {
		return 0, 0, false
	}
	if p.Port == "" {
		return 0, 0, true
	}
	// Base 0, as Cilium reads it, "010" is 8; but not what that takes besides:
	// "1_000" is how Go spells numbers, and nobody else's port.
	n, err := strconv.ParseUint(p.Port, 0, 16)
	if err != nil || strings.Contains(p.Port, "_") {
		return 0, 0, false
	}
	first = uint16(n)
	if first != 0 && p.EndPort > int32(first) && p.EndPort <= 65535 {
		return first, uint16(p.EndPort), true
	}
	return first, first, true
}

// overlaps tells whether some packet's port is both. Names are compared as
// such: what they stand for differs from pod to pod.
func (p PortProtocol) overlaps(q PortProtocol) bool {
	if !slices.ContainsFunc(p.Protocol.Numbers(), func(n uint8) bool { return slices.Contains(q.Protocol.Numbers(), n) }) {
		return false
	}
	if p.Name() != "" || q.Name() != "" {
		return p.Name() == q.Name()
	}
	pFirst, pLast, pOK := p.Range()
	qFirst, qLast, qOK := q.Range()
	all := pFirst == 0 || qFirst == 0
	return pOK && qOK && (all || pFirst <= qLast && qFirst <= pLast)
}

// isServiceName tells whether a port is a name as IANA writes service names:
// up to 15 letters, digits and single inner hyphens, at least one letter.
func isServiceName(s string) bool {
	if s == "" || len(s) > 15 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	letter := false
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
		case c == '-':
			if s[i-1] == '-' {
				return false
			}
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			letter = true
		default:
			return false
		}
	}
	return letter
}

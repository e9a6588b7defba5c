package api

import (
	"strconv"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// Families of ICMP.
const (
	FamilyIPv4 = "IPv4"
	FamilyIPv6 = "IPv6"
)

// Number returns the type of the message, 0 to 255. ok is false where the type
// is no number in that range and no name of the family: no message matches.
// In a checked policy that is a number above 255.
func (f *ICMPField) Number() (n uint8, ok bool) {
	if f.Type.Type == intstr.Int {
		return uint8(f.Type.IntVal), f.Type.IntVal >= 0 && f.Type.IntVal <= 255
	}
	s := f.Type.StrVal
	if u, err := strconv.ParseUint(s, 10, 8); err == nil {
		return uint8(u), s == "0" || s[0] != '0' // no leading zeros: they read as octal elsewhere
	}
	if f.Family == FamilyIPv6 {
		return icmpv6Type(s)
	}
	return icmpType(s)
}

// icmpType knows the names the policy API has for types of ICMP. Some that
// have a number there are not admitted by its schema (ExtendedEchoReply) and
// are left out.
func icmpType(name string) (uint8, bool) {
	switch name {
	case "EchoReply":
		return 0, true
	case "DestinationUnreachable":
		return 3, true
	case "Redirect":
		return 5, true
	case "Echo", "EchoRequest":
		return 8, true
	case "RouterAdvertisement":
		return 9, true
	case "RouterSelection":
		return 10, true
	case "TimeExceeded":
		return 11, true
	case "ParameterProblem":
		return 12, true
	case "Timestamp":
		return 13, true
	case "TimestampReply":
		return 14, true
	case "Photuris":
		return 40, true
	case "ExtendedEchoRequest":
		return 42, true
	}
	return 0, false
}

// icmpv6Type knows the names for types of ICMPv6.
func icmpv6Type(name string) (uint8, bool) {
	switch name {
	case "DestinationUnreachable":
		return 1, true
	case "PacketTooBig":
		return 2, true
	case "TimeExceeded":
		return 3, true
	case "ParameterProblem":
		return 4, true
	case "EchoRequest":
		return 128, true
	case "EchoReply":
		return 129, true
	case "MulticastListenerQuery":
		return 130, true
	case "MulticastListenerReport":
		return 131, true
	case "MulticastListenerDone":
		return 132, true
	case "RouterSolicitation":
		return 133, true
	case "RouterAdvertisement":
		return 134, true
	case "NeighborSolicitation":
		return 135, true
	case "NeighborAdvertisement":
		return 136, true
	case "RedirectMessage":
		return 137, true
	case "RouterRenumbering":
		return 138, true
	case "ICMPNodeInformationQuery":
		return 139, true
	case "ICMPNodeInformationResponse":
		return 140, true
	case "InverseNeighborDiscoverySolicitation":
		return 141, true
	case "InverseNeighborDiscoveryAdvertisement":
		return 142, true
	case "HomeAgentAddressDiscoveryRequest":
		return 144, true
	case "HomeAgentAddressDiscoveryReply":
		return 145, true
	case "MobilePrefixSolicitation":
		return 146, true
	case "MobilePrefixAdvertisement":
		return 147, true
	case "DuplicateAddressRequestCodeSuffix":
		return 157, true
	case "DuplicateAddressConfirmationCodeSuffix":
		return 158, true
	case "ExtendedEchoRequest":
		return 160, true
	}
	return 0, false
}

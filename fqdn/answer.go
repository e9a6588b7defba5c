package fqdn

import (
	"net/netip"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// Answer is what a believed server said about a name. Names are in normal
// form: lower case, without a final dot. Learn keeps nothing of it: strings
// and slices may lie in buffers that are used again.
type Answer struct {
	// Name is the asked name.
	Name string
	// Chain are the names that CNAME records lead to from it, in order.
	Chain []string
	// Records are the addresses of the chain's end.
	Records []Record
	// Pod is who asked.
	Pod netip.Addr
	// Namespace is the one for whose policies alone the answer counts, since only
	// they name the server; "": it counts for all.
	Namespace string
}

// Record is an address and how long the server wants it believed.
type Record struct {
	Addr netip.Addr // not an IPv4 address in IPv6 form, unless the server said so
	TTL  time.Duration
}

// Name is a name as List shows it.
type Name struct {
	Name string
	// Namespace: for whose policies alone it counts; "": for all. A name may be
	// there for several, with addresses of its own for each.
	Namespace string
	Addresses []Address
	// Selectors match it.
	Selectors []dnsrules.Selector
	// Pods asked for it: the latest few, latest first.
	Pods []netip.Addr
}

// Address is one that a name stands for.
type Address struct {
	Addr netip.Addr
	// Expires is when the name stops standing for it, unless it is alive.
	Expires time.Time
	// Alive: a flow to it was seen of late.
	Alive bool
	// Identity is the one in the kernel's table; 0: none is.
	Identity identity.ID
}

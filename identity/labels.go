package identity

import (
	"net/netip"
	"slices"
	"strings"
)

// Sources of labels. SourceAny and SourceUnspec are not sources: a selector's
// key with either asks for the key of any source.
const (
	SourceAny      = "any"
	SourceUnspec   = "unspec"
	SourceK8s      = "k8s"
	SourceReserved = "reserved"
	SourceCIDR     = "cidr"
	SourceNode     = "node"
)

// Label is one label of an identity, with where it comes from.
type Label struct{ Source, Key, Value string }

// String spells the label as selectors and flow records do: "k8s:app=web",
// "reserved:host".
func (l Label) String() string {
	if l.Value == "" && l.Source != SourceK8s && l.Source != SourceNode {
		return l.Source + ":" + l.Key
	}
	return l.Source + ":" + l.Key + "=" + l.Value
}

// Labels is the label set of an identity: ordered by key and source, each pair
// of them once. Make one with NewLabels.
type Labels []Label

// NewLabels orders labels. Of two with one source and key the first counts.
func NewLabels(labels ...Label) Labels {
	out := slices.Clone(labels)
	slices.SortStableFunc(out, func(a, b Label) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return strings.Compare(a.Source, b.Source)
	})
	return slices.CompactFunc(out, func(a, b Label) bool { return a.Key == b.Key && a.Source == b.Source })
}

// Get returns the value of a key; source may be SourceAny or SourceUnspec. A key
// of SourceCIDR stands for every label of a prefix that lies in its own.
func (ls Labels) Get(source, key string) (value string, ok bool) {
	if source == SourceCIDR {
		return "", ls.within(key)
	}
	for i := range ls {
		switch {
		case ls[i].Key < key:
		case ls[i].Key > key:
			return "", false
		case source == SourceAny || source == SourceUnspec || ls[i].Source == source:
			return ls[i].Value, true
		}
	}
	return "", false
}

func (ls Labels) within(key string) bool {
	outer, known := netip.Prefix{}, false
	for i := range ls {
		if ls[i].Source != SourceCIDR {
			continue
		}
		if !known {
			if outer, known = PrefixOfKey(key); !known {
				return false
			}
		}
		if p, ok := PrefixOfKey(ls[i].Key); ok && outer.Bits() <= p.Bits() && outer.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// PrefixOfKey reads the key of a label of SourceCIDR: a prefix, with or without
// dashes in place of an IPv6 address's colons, which no selector's key may
// have. Host bits don't count.
func PrefixOfKey(key string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(strings.ReplaceAll(key, "-", ":"))
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, false // no packet has an IPv4 address in IPv6 form
	}
	return p.Masked(), true
}

// HasReserved tells whether the set has the reserved label of that name.
func (ls Labels) HasReserved(name string) bool {
	_, ok := ls.Get(SourceReserved, name)
	return ok
}

// Strings spells every label, in order.
func (ls Labels) Strings() []string {
	out := make([]string, len(ls))
	for i, l := range ls {
		out[i] = l.String()
	}
	return out
}

// AppendCanonical appends bytes that are equal for equal sets only.
func (ls Labels) AppendCanonical(b []byte) []byte {
	for _, l := range ls {
		b = append(b, l.Source...)
		b = append(b, ':')
		b = append(b, l.Key...)
		b = append(b, '=')
		b = append(b, l.Value...)
		b = append(b, 0) // no label holds it
	}
	return b
}

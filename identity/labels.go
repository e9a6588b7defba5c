package identity

import (
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

// Get returns the value of a key; source may be SourceAny or SourceUnspec.
func (ls Labels) Get(source, key string) (value string, ok bool) {
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

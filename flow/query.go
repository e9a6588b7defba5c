package flow

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Query asks a Ring for records.
type Query struct {
	Filter Filter
	// Last is how many of the records that are there are given: the latest
	// that match; negative: all.
	Last int
	// Since leaves out what is older.
	Since time.Time
	// Follow goes on with the records to come.
	Follow bool
}

// Filter says which records are meant. Within a field any value will do; all
// fields that are set must hold.
type Filter struct {
	Pod       []string // "namespace/pod", "pod", or an address; either end
	From, To  []string // the same of the source, the destination
	Namespace []string // of either end
	Verdict   []string // forwarded, dropped, redirected
	Reason    []string
	Direction []string // ingress, egress
	Protocol  []string // TCP, UDP, ...
	Port      []uint16 // of either end
	Layer     []string // l4, l7
	Policy    []string // "namespace/name", "name", or as in a record; the one that decided
	Method    []string // HTTP
	Path      string   // HTTP: a regular expression somewhere in the path
	Status    []int    // HTTP
	Name      string   // DNS: a regular expression somewhere in the asked name
}

// Values encodes q for a URL; ParseQuery reads it back.
func (q Query) Values() url.Values {
	v := url.Values{}
	f := q.Filter
	for name, list := range map[string][]string{
		"pod": f.Pod, "from": f.From, "to": f.To, "namespace": f.Namespace, "verdict": f.Verdict,
		"reason": f.Reason, "direction": f.Direction, "protocol": f.Protocol, "layer": f.Layer,
		"policy": f.Policy, "method": f.Method,
	} {
		for _, s := range list {
			v.Add(name, s)
		}
	}
	for _, p := range f.Port {
		v.Add("port", strconv.Itoa(int(p)))
	}
	for _, s := range f.Status {
		v.Add("status", strconv.Itoa(s))
	}
	if f.Path != "" {
		v.Set("path", f.Path)
	}
	if f.Name != "" {
		v.Set("name", f.Name)
	}
	if q.Last >= 0 {
		v.Set("last", strconv.Itoa(q.Last))
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if q.Follow {
		v.Set("follow", "true")
	}
	return v
}

// ParseQuery reads what Values made. Unknown names are refused: a filter that
// is not applied shows what was not asked for.
func ParseQuery(v url.Values) (Query, error) {
	q := Query{Last: -1}
	f := &q.Filter
	lists := map[string]*[]string{
		"pod": &f.Pod, "from": &f.From, "to": &f.To, "namespace": &f.Namespace, "verdict": &f.Verdict,
		"reason": &f.Reason, "direction": &f.Direction, "protocol": &f.Protocol, "layer": &f.Layer,
		"policy": &f.Policy, "method": &f.Method,
	}
	for name, values := range v {
		if list, ok := lists[name]; ok {
			*list = values
			continue
		}
		for _, s := range values {
			var err error
			switch name {
			case "port":
				var n uint64
				n, err = strconv.ParseUint(s, 10, 16)
				f.Port = append(f.Port, uint16(n))
			case "status":
				var n int
				n, err = strconv.Atoi(s)
				f.Status = append(f.Status, n)
			case "path":
				f.Path = s
			case "name":
				f.Name = s
			case "last":
				q.Last, err = strconv.Atoi(s)
			case "since":
				q.Since, err = time.Parse(time.RFC3339Nano, s)
			case "follow":
				q.Follow, err = strconv.ParseBool(s)
			default:
				return Query{}, fmt.Errorf("unknown filter %q", name)
			}
			if err != nil {
				return Query{}, fmt.Errorf("filter %s=%q: %w", name, s, err)
			}
		}
	}
	_, err := f.compile()
	return q, err
}

// compile returns a function that tells whether a record is meant.
func (f Filter) compile() (func(*Record) bool, error) {
	path, err := expression("path", f.Path)
	if err != nil {
		return nil, err
	}
	asked, err := expression("name", f.Name)
	if err != nil {
		return nil, err
	}
	for _, check := range []struct {
		name    string
		values  []string
		allowed []string
	}{
		{"verdict", f.Verdict, []string{"forwarded", "dropped", "redirected"}},
		{"direction", f.Direction, []string{"ingress", "egress"}},
		{"layer", f.Layer, []string{"l4", "l7"}},
	} {
		for _, s := range check.values {
			if !slices.ContainsFunc(check.allowed, func(a string) bool { return strings.EqualFold(a, s) }) {
				return nil, fmt.Errorf("filter %s=%q: must be one of %s", check.name, s, strings.Join(check.allowed, ", "))
			}
		}
	}
	return func(r *Record) bool {
		return (len(f.Pod) == 0 || r.Source.is(f.Pod) || r.Dest.is(f.Pod)) &&
			(len(f.From) == 0 || r.Source.is(f.From)) &&
			(len(f.To) == 0 || r.Dest.is(f.To)) &&
			(len(f.Namespace) == 0 || slices.Contains(f.Namespace, r.Source.Namespace) || slices.Contains(f.Namespace, r.Dest.Namespace)) &&
			foldIn(f.Verdict, r.Verdict.String()) &&
			foldIn(f.Reason, r.Reason) &&
			foldIn(f.Direction, r.Direction) &&
			foldIn(f.Protocol, r.Protocol) &&
			foldIn(f.Layer, layerName(r.Layer)) &&
			(len(f.Port) == 0 || slices.Contains(f.Port, r.Source.Port) || slices.Contains(f.Port, r.Dest.Port)) &&
			(len(f.Policy) == 0 || r.decidedBy(f.Policy)) &&
			(len(f.Method) == 0 || r.HTTP != nil && slices.Contains(f.Method, r.HTTP.Method)) &&
			(path == nil || r.HTTP != nil && path.MatchString(r.HTTP.Path)) &&
			(asked == nil || r.DNS != nil && asked.MatchString(r.DNS.Name)) &&
			(len(f.Status) == 0 || r.HTTP != nil && slices.Contains(f.Status, r.HTTP.Status))
	}, nil
}

// expression compiles a regular expression; "" gives nil.
func expression(filter, text string) (*regexp.Regexp, error) {
	if text == "" {
		return nil, nil
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("filter %s: %w", filter, err)
	}
	return re, nil
}

func layerName(layer string) string {
	if layer == "L7" {
		return "l7"
	}
	return "l4"
}

func foldIn(list []string, s string) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(v string) bool { return strings.EqualFold(v, s) })
}

// is tells whether one of the names ("namespace/pod", "pod", an address or a
// prefix) means p.
func (p Peer) is(names []string) bool {
	for _, name := range names {
		if ns, pod, ok := strings.Cut(name, "/"); ok && p.Pod != "" && ns == p.Namespace && (pod == p.Pod || pod == "") {
			return true
		}
		if p.Pod != "" && name == p.Pod {
			return true
		}
		if a, err := netip.ParseAddr(name); err == nil && a.Unmap() == p.Addr.Unmap() {
			return true
		}
		if pfx, err := netip.ParsePrefix(name); err == nil && pfx.Contains(p.Addr.Unmap()) {
			return true
		}
	}
	return false
}

// decidedBy tells whether one of the policies decided, or selects a pod whose
// default deny did.
func (r *Record) decidedBy(names []string) bool {
	is := func(full string) bool {
		_, object, _ := strings.Cut(full, " ") // "Kind namespace/name"
		_, base, _ := strings.Cut(object, "/")
		return slices.Contains(names, full) || slices.Contains(names, object) || base != "" && slices.Contains(names, base)
	}
	return r.Rule != nil && is(r.Rule.Policy) || slices.ContainsFunc(r.Policies, is)
}

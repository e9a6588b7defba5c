package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/policy/httprules"
)

// policyObject is a policy as the engine keeps it.
type policyObject struct {
	object Object
	name   string // "CiliumNetworkPolicy shop/web"
	src    *api.Policy
	rules  []*rule
	// numbers of its rules by field path, given when a table first needs one.
	numbers map[string]uint32

	prefixes                 []netip.Prefix // that its rules must tell apart
	blocks                   []*ipBlock
	fqdns                    []dnsrules.Selector
	nodeKeys                 []string // labels of nodes its rules ask for
	usesGroups, usesServices bool
}

// rule is one direction of one rule of a policy: what it allows or denies its
// subjects. A rule without grants is there all the same: it selects, so it
// puts its subjects under default deny.
type rule struct {
	policy    *policyObject
	index     int // among the policy's rules
	path      string
	direction Direction

	subject   identity.Selector
	namespace string // of the subjects; "": any
	nodes     bool   // its subjects are nodes, not pods
	// A refused policy: the direction is closed.
	closed bool
	deny   bool
	// defaultDeny: what no rule allows is denied. Where no rule that selects a
	// pod says so, everything is allowed beside the rules, so that their L7
	// rules refuse nothing.
	defaultDeny bool

	any   bool // every peer
	peers []*selector
	fqdns bool // some peers are names
	// grants is what holds for these peers, port list by port list.
	grants []*portGrant
}

// portGrant is a list of ports with what must hold of requests through them.
type portGrant struct {
	path  string
	all   bool // everything, whatever the protocol
	ports []ports
	names []portName
	spans []span // the ports as they were written
	l7    *l7Rules
}

// span is one item of a port list, for one protocol: a port, a range, or a
// name.
type span struct {
	proto       uint8
	first, last uint16
	name        string
}

// portName is a port by name: its number is the subject's own at ingress, and
// that of each peer at egress.
type portName struct {
	name   string
	protos []uint8
	end    uint16 // last port of a range from the named one; counts at ingress
}

// l7Kind is which parser must look into a flow.
type l7Kind uint8

const (
	l7HTTP l7Kind = iota + 1
	l7DNS
	l7Kafka
	l7TLS
)

func (k l7Kind) String() string {
	return [...]string{"no", "HTTP", "DNS", "Kafka", "server name"}[k]
}

// l7Rules are the L7 rules of a port list.
type l7Rules struct {
	kind l7Kind
	http []httprules.Rule
	dns  []dnsrules.Rule
	path []string // of each of either
}

// selects tells whether the rule's policy selects pods of that identity, or a
// node.
func (r *rule) selects(p *peer) bool {
	if r.nodes != (p.kind == hostPeer) {
		return false
	}
	if r.namespace != "" && p.namespace != r.namespace {
		return false
	}
	return r.subject.Matches(p.labels)
}

// compare orders rules: by policy, then as they stand in it.
func (r *rule) compare(o *rule) int {
	if c := r.policy.compare(o.policy); c != 0 {
		return c
	}
	return cmp.Compare(r.index, o.index)
}

func (p *policyObject) compare(o *policyObject) int {
	return cmp.Or(cmp.Compare(p.object.Kind, o.object.Kind),
		cmp.Compare(p.object.Namespace, o.object.Namespace), cmp.Compare(p.object.Name, o.object.Name))
}

// ref describes the rule at a field path. Its line is that of the deepest
// field on the path whose line is known.
func (p *policyObject) ref(path string) RuleRef {
	r := RuleRef{Policy: p.name, Rule: path, File: p.src.Source.File, Line: p.src.Source.Line}
	for at := path; at != ""; {
		if line, ok := p.src.Lines[at]; ok {
			r.Line = line
			break
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			break
		}
		at = at[:i]
	}
	return r
}

// ruleTable numbers the rules that tables name.
type ruleTable struct {
	numbers *numbering
	at      map[uint32]*ruleAt
}

type ruleAt struct {
	policy *policyObject
	path   string
	ref    *RuleRef // made when first asked for
}

func newRuleTable(n *numbering) *ruleTable { return &ruleTable{numbers: n, at: map[uint32]*ruleAt{}} }

// number returns the number of the rule at a field path of a policy.
func (t *ruleTable) number(p *policyObject, path string) (uint32, error) {
	if id, ok := p.numbers[path]; ok {
		return id, nil
	}
	id, err := t.numbers.get(identity.DigestOf([]byte(p.name + "\x00" + path)))
	if err != nil {
		return 0, fmt.Errorf("number a rule of %s: %w", p.name, err)
	}
	p.numbers[path] = id
	t.at[id] = &ruleAt{policy: p, path: path}
	return id, nil
}

// inherit keeps the numbers of the rules that stand where old had one.
func (t *ruleTable) inherit(p, old *policyObject) {
	for _, path := range p.paths() {
		if id, ok := old.numbers[path]; ok {
			p.numbers[path] = id
			t.at[id] = &ruleAt{policy: p, path: path}
			delete(old.numbers, path)
		}
	}
}

// release gives the numbers of a policy back.
func (t *ruleTable) release(p *policyObject) {
	for _, id := range p.numbers {
		t.numbers.release(id)
		delete(t.at, id)
	}
}

// translator turns policies into rules, against the objects they refer to.
type translator struct {
	groups        map[string]*cidrGroup
	groupsVersion uint64
	services      func(api.Service) []*service

	policy *policyObject
	// doubtful: what the rule at hand selects is less than was meant, and what
	// it lets through may be more.
	doubtful bool
}

// translate makes the rules of a policy.
func (t *translator) translate(o Object, src *api.Policy) *policyObject {
	p := &policyObject{object: o, src: src, numbers: map[string]uint32{}, name: o.Kind + " " + o.Name}
	if o.Namespace != "" {
		p.name = o.Kind + " " + o.Namespace + "/" + o.Name
	}
	t.policy = p
	switch {
	case len(src.Refused) > 0:
		t.closures(src)
	case src.NetworkPolicy != nil:
		t.networkPolicy(src.NetworkPolicy)
	default:
		for i, r := range src.Rules {
			t.cilium(r, src.Paths[i])
		}
	}
	return p
}

func (t *translator) add(r *rule) {
	r.policy, r.index = t.policy, len(t.policy.rules)
	t.policy.rules = append(t.policy.rules, r)
}

// closures closes what a refused policy would select.
func (t *translator) closures(src *api.Policy) {
	path := ""
	if e := src.Refused[0]; e.Field != "" {
		path = e.Field
	}
	closed := src.Closed
	if len(closed) == 0 { // it does not say: everything it could speak of
		closed = []api.Closure{{Ingress: true, Egress: true}}
	}
	for _, c := range closed {
		var subject identity.Selector
		if c.Subjects != nil {
			if src.Kind == api.KindNetworkPolicy {
				subject = selectorOf(c.Subjects, api.SourceK8s)
			} else {
				subject = t.subject(c.Subjects)
			}
		}
		for _, d := range [...]Direction{Ingress, Egress} {
			if d == Ingress && c.Ingress || d == Egress && c.Egress {
				t.add(&rule{path: path, direction: d, subject: subject, namespace: t.policy.object.Namespace,
					nodes: c.Nodes, closed: true, defaultDeny: true})
			}
		}
	}
}

// groupNameKey with a group's name is a label, without a value, that all
// addresses of the group have besides the group's labels.
const groupNameKey = "io.cilium.policy.cidrgroupname/"

// cidrGroup is a named list of outside prefixes.
type cidrGroup struct {
	name     string
	labels   map[string]string
	prefixes []netip.Prefix
	refused  bool
}

func newCIDRGroup(g *api.CIDRGroup) *cidrGroup {
	out := &cidrGroup{name: g.Name, labels: map[string]string{}, refused: len(g.Refused) > 0}
	for k, v := range g.Labels {
		if !strings.HasPrefix(k, "io.cilium.k8s") { // made by Cilium only, never by users
			out.labels[k] = v
		}
	}
	if !out.refused {
		for _, c := range g.ExternalCIDRs {
			if p, ok := parsePrefix(string(c)); ok {
				out.prefixes = append(out.prefixes, p)
			}
		}
	}
	return out
}

// parsePrefix reads a prefix, or an address as one of full length. Host bits
// do not count. IPv4 mapped into IPv6 is no prefix: no packet has such an
// address, and to take it for IPv4 would select what the policy does not name.
func parsePrefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}

// hostPrefix is the prefix of one address.
func hostPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}

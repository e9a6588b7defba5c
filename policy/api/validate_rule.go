package api

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxPorts and maxICMPFields are Cilium's limits per list.
const (
	maxPorts      = 40
	maxICMPFields = 40
)

// notSupported is what is said of the fields that Weir knows and refuses.
const notSupported = "is not supported: the policy can't be enforced as written"

// rule checks one rule set: what Cilium's schema and agent would refuse, and
// what Weir refuses on top.
func (d *decoder) rule(r *Rule, path, kind string) {
	nodes := d.has(path + ".nodeSelector")
	switch {
	case d.has(path+".endpointSelector") && nodes:
		d.errorf(path, "has both endpointSelector and nodeSelector: only one may be set")
	case !d.has(path+".endpointSelector") && !nodes:
		d.errorf(path, "endpointSelector is missing")
	}
	if nodes && kind == KindCiliumPolicy {
		d.errorf(path+".nodeSelector", "only a %s selects nodes", KindClusterwide)
	}
	if r.EndpointSelector != nil {
		d.selector(r.EndpointSelector, path+".endpointSelector")
	}
	if r.NodeSelector != nil {
		d.selector(r.NodeSelector, path+".nodeSelector")
	}
	if len(r.Ingress)+len(r.IngressDeny)+len(r.Egress)+len(r.EgressDeny) == 0 && !d.rulesFailed(path) {
		d.errorf(path, "needs a rule in ingress, ingressDeny, egress or egressDeny")
	}
	for i, l := range r.Labels {
		if p := index(path+".labels", i); l.Key == "" && !d.failed(p) {
			d.errorf(p+".key", "is missing")
		}
	}
	if r.Log != nil {
		d.logValue(r.Log.Value, path+".log.value")
	}
	for i := range r.Ingress {
		in, p := &r.Ingress[i], index(path+".ingress", i)
		d.ingressPeers(&in.IngressPeers, p)
		d.portRules(in.ToPorts, p+".toPorts", scope{ingress: true, nodes: nodes})
		d.icmps(in.ICMPs, len(in.ToPorts), p)
		d.authentication(in.Authentication, p+".authentication")
	}
	for i := range r.IngressDeny {
		in, p := &r.IngressDeny[i], index(path+".ingressDeny", i)
		d.ingressPeers(&in.IngressPeers, p)
		d.denyPorts(in.ToPorts, p+".toPorts")
		d.icmps(in.ICMPs, len(in.ToPorts), p)
	}
	for i := range r.Egress {
		e, p := &r.Egress[i], index(path+".egress", i)
		d.egressPeers(&e.EgressPeers, len(e.ToFQDNs), p)
		for j, f := range e.ToFQDNs {
			d.dnsName(f.MatchName, f.MatchPattern, index(p+".toFQDNs", j))
		}
		d.portRules(e.ToPorts, p+".toPorts", scope{nodes: nodes})
		d.icmps(e.ICMPs, len(e.ToPorts), p)
		d.authentication(e.Authentication, p+".authentication")
	}
	for i := range r.EgressDeny {
		e, p := &r.EgressDeny[i], index(path+".egressDeny", i)
		d.egressPeers(&e.EgressPeers, 0, p)
		d.denyPorts(e.ToPorts, p+".toPorts")
		d.icmps(e.ICMPs, len(e.ToPorts), p)
	}
}

// rulesFailed tells whether one of the four lists could not be read at all.
func (d *decoder) rulesFailed(path string) bool {
	for _, list := range []string{".ingress", ".ingressDeny", ".egress", ".egressDeny"} {
		if d.failed(path + list) {
			return true
		}
	}
	return false
}

func (d *decoder) logValue(v, path string) {
	if utf8.RuneCountInString(v) > 32 {
		d.errorf(path, "is longer than 32 characters")
	}
	if strings.ContainsFunc(v, func(r rune) bool { return unicode.Is(unicode.C, r) }) {
		d.errorf(path, "has characters that can't be printed")
	}
}

func (d *decoder) authentication(a *Authentication, path string) {
	if a == nil || d.failed(path) {
		return
	}
	switch a.Mode {
	case "disabled":
	case "required", "test-always-fail":
		d.errorf(path+".mode", "%q %s", a.Mode, notSupported)
	default:
		d.errorf(path+".mode", "%q is none of disabled, required, test-always-fail", a.Mode)
	}
}

func (d *decoder) icmps(rules []ICMPRule, ports int, path string) {
	if len(rules) > 0 && ports > 0 {
		d.errorf(path+".icmps", "can't stand beside toPorts: write a rule of its own for either")
	}
	for i, r := range rules {
		p := index(path+".icmps", i)
		if len(r.Fields) > maxICMPFields {
			d.errorf(p+".fields", "has %d items, more than %d", len(r.Fields), maxICMPFields)
		}
		for j := range r.Fields {
			d.icmpField(&r.Fields[j], index(p+".fields", j))
		}
	}
}

func (d *decoder) icmpField(f *ICMPField, path string) {
	if d.failed(path) {
		return
	}
	if d.has(path+".family") && f.Family != FamilyIPv4 && f.Family != FamilyIPv6 {
		d.errorf(path+".family", "%q is neither IPv4 nor IPv6", f.Family)
		return
	}
	if !d.has(path + ".type") {
		d.errorf(path+".type", "is missing")
		return
	}
	if _, ok := f.Number(); ok {
		return
	}
	family := f.Family
	if family == "" {
		family = FamilyIPv4
	}
	if n, err := strconv.Atoi(f.Type.String()); err == nil {
		// A number is never negative on the wire, and Cilium takes it for every
		// type. One that is too large is a rule for no message: see lint.
		if n < 0 || f.Type.Type == intstr.String {
			d.errorf(path+".type", "%s is not a type of ICMP: 0 to 255", f.Type.String())
		}
		return
	}
	d.errorf(path+".type", "%q is no ICMP type of %s", f.Type.String(), family)
}

package api

import (
	"slices"
	"strings"

	"github.com/weirnet/weir/policy/httprules"
)

// maxName is the most characters of a DNS name or pattern.
const maxName = 255

// l7Rules checks the rules of a port, and that they can hold there.
func (d *decoder) l7Rules(r *PortRule, path string, s scope) {
	rules, p := r.Rules, path+".rules"
	set := 0
	for _, kind := range []string{".http", ".dns", ".kafka"} {
		if d.has(p + kind) {
			set++
		}
	}
	if set != 1 && !d.failed(p) {
		d.errorf(p, "needs exactly one of http, dns and kafka")
	}
	for i := range rules.HTTP {
		d.httpRule(&rules.HTTP[i], index(p+".http", i))
	}
	for i, dns := range rules.DNS {
		d.dnsName(dns.MatchName, dns.MatchPattern, index(p+".dns", i))
	}
	for i := range rules.Kafka {
		d.kafkaRule(&rules.Kafka[i], index(p+".kafka", i))
	}
	if rules.Empty() {
		return
	}
	switch {
	case s.nodes && s.ingress:
		d.errorf(p, "L7 rules are not supported in the ingress of nodes")
	case s.nodes && len(rules.DNS) == 0:
		d.errorf(p, "only DNS rules are supported in the egress of nodes")
	case s.ingress && len(rules.DNS) > 0:
		d.errorf(p+".dns", "DNS rules are for egress only")
	}
	if len(rules.DNS) > 0 && len(r.Ports) == 0 {
		d.errorf(p+".dns", "DNS rules need a port: write 53")
	}
	for i := range r.Ports {
		d.l7Port(&r.Ports[i], index(path+".ports", i), len(rules.DNS) > 0)
	}
}

// l7Port checks that a port can carry L7 rules.
func (d *decoder) l7Port(port *PortProtocol, path string, dns bool) {
	if !dns && port.Protocol != ProtocolTCP && !d.failed(path+".protocol") {
		protocol := port.Protocol
		if protocol == "" {
			protocol = ProtocolAny
		}
		d.errorf(path+".protocol", "is %s: HTTP and Kafka rules need TCP", protocol)
	}
	if first, _, ok := port.Range(); ok && first == 0 && port.Port != "" {
		d.errorf(path+".port", "%q stands for all ports: L7 rules need one or a range", port.Port)
	}
}

func (d *decoder) httpRule(r *HTTPRule, path string) {
	for _, f := range []struct {
		name string
		rule httprules.Rule
	}{
		{"path", httprules.Rule{Path: r.Path}},
		{"method", httprules.Rule{Method: r.Method}},
		{"host", httprules.Rule{Host: r.Host}},
	} {
		if err := httprules.CheckRule(f.rule); err != nil {
			d.errorf(path+"."+f.name, "%s", strings.TrimPrefix(err.Error(), f.name+": "))
		}
	}
	for i, h := range r.Headers {
		p := index(path+".headers", i)
		if d.failed(p) {
			continue
		}
		if err := httprules.CheckRule(httprules.Rule{Headers: []string{h}}); err != nil {
			d.errorf(p, "%s", strings.TrimPrefix(err.Error(), "headers[0]: "))
		}
	}
	for i := range r.HeaderMatches {
		d.headerMatch(&r.HeaderMatches[i], index(path+".headerMatches", i))
	}
}

func (d *decoder) headerMatch(m *HeaderMatch, path string) {
	if m.Secret != nil {
		d.secret(path + ".secret")
		d.errorf(path+".secret", "is not supported: the value can't be read; write it as value")
	}
	if d.has(path+".mismatch") && m.Mismatch == "" && !d.failed(path+".mismatch") {
		d.errorf(path+".mismatch", "must be LOG, ADD, DELETE or REPLACE")
	}
	if d.failed(path+".mismatch") || d.failed(path+".name") || d.failed(path+".value") {
		return
	}
	err := httprules.CheckRule(httprules.Rule{HeaderMatches: []httprules.HeaderMatch{{Mismatch: m.Mismatch, Name: m.Name, Value: m.Value}}})
	if err != nil {
		d.errorf(path, "%s", strings.TrimPrefix(err.Error(), "headerMatches[0]: "))
	}
}

// dnsName checks the name or pattern of a DNS rule or FQDN selector.
func (d *decoder) dnsName(name, pattern, path string) {
	hasName, hasPattern := d.has(path+".matchName"), d.has(path+".matchPattern")
	if hasName == hasPattern && !d.failed(path) {
		d.errorf(path, "needs matchName or matchPattern, one of them")
	}
	if hasName {
		d.pattern(name, path+".matchName")
		if strings.Contains(name, "*") {
			d.errorf(path+".matchName", "%q has a wildcard: write it as matchPattern", name)
		}
	}
	if hasPattern {
		d.pattern(pattern, path+".matchPattern")
	}
}

// pattern checks a name in which * may stand: labels of letters, digits,
// hyphens and underscores, one dot between them, a last one allowed.
func (d *decoder) pattern(s, path string) {
	if d.failed(path) {
		return
	}
	if len(s) > maxName {
		d.errorf(path, "is longer than %d characters", maxName)
	}
	for _, c := range []byte(s) {
		if c != '-' && c != '_' && c != '*' && c != '.' && !isAlphanumeric(string(c)) {
			d.errorf(path, "%q: only letters, digits and - _ . may stand in a name, and * in a pattern", s)
			return
		}
	}
	if s == "" || s[0] == '.' || strings.Contains(s, "..") {
		d.errorf(path, "%q is not a name: a part of it is empty", s)
	}
}

func (d *decoder) kafkaRule(r *KafkaRule, path string) {
	if r.Role != "" && r.APIKey != "" {
		d.errorf(path, "has both role and apiKey: only one may be set")
	}
	if p := path + ".role"; d.has(p) && !d.failed(p) && r.Role != "produce" && r.Role != "consume" {
		d.errorf(p, "%q is neither produce nor consume", r.Role)
	}
	if p := path + ".apiKey"; r.APIKey != "" && !slices.Contains(kafkaAPIKeys(), strings.ToLower(r.APIKey)) {
		d.errorf(p, "%q is no API key of Kafka", r.APIKey)
	}
	if p := path + ".apiVersion"; r.APIVersion != "" {
		if n, ok := decimal(r.APIVersion); !ok || n > 32767 {
			d.errorf(p, "%q is not a version: 0 to 32767", r.APIVersion)
		}
	}
	if p := path + ".topic"; r.Topic != "" {
		switch {
		case len(r.Topic) > maxName:
			d.errorf(p, "is longer than %d characters", maxName)
		case strings.ContainsFunc(r.Topic, notInTopic):
			d.errorf(p, "%q: only letters, digits and - _ . may stand in a topic", r.Topic)
		}
	}
}

const topicCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

func notInTopic(r rune) bool { return !strings.ContainsRune(topicCharacters, r) }

// kafkaAPIKeys lists the request kinds a rule may name.
func kafkaAPIKeys() []string {
	return []string{
		"produce", "fetch", "offsets", "metadata", "leaderandisr", "stopreplica", "updatemetadata",
		"controlledshutdown", "offsetcommit", "offsetfetch", "findcoordinator", "joingroup", "heartbeat",
		"leavegroup", "syncgroup", "describegroups", "listgroups", "saslhandshake", "apiversions",
		"createtopics", "deletetopics", "deleterecords", "initproducerid", "offsetforleaderepoch",
		"addpartitionstotxn", "addoffsetstotxn", "endtxn", "writetxnmarkers", "txnoffsetcommit",
		"describeacls", "createacls", "deleteacls", "describeconfigs", "alterconfigs",
	}
}

// decimal reads a number of digits only.
func decimal(s string) (n int, ok bool) {
	if s == "" || len(s) > 5 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

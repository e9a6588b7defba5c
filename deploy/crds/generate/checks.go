package main

import (
	"slices"
	"strings"
)

// check is what must not be of an object, where its schema can't say so in
// words. $ is the object in both expressions.
type check struct {
	when, say string
}

// checks lists those for objects with this schema. They say what the decoder
// of policy/api says.
func checks(s schema) []check {
	var out []check
	has := func(names ...string) bool {
		for _, n := range names {
			if s.child(n) == nil {
				return false
			}
		}
		return true
	}
	add := func(when, say string) { out = append(out, check{when, say}) }
	var peers []string
	for _, k := range s.keys() {
		list := s.child(k)["type"] == "array"
		switch {
		case list && strings.HasSuffix(k, "Requires"):
			add(filled(k), "'."+k+": no longer exists: write a deny rule for the peers that lack the labels'")
		case list && (strings.HasPrefix(k, "from") || strings.HasPrefix(k, "to") && k != "toPorts"):
			peers = append(peers, k)
		}
		if slices.Contains([]string{"fromGroups", "toGroups"}, k) {
			add(filled(k), "'."+k+": "+notSupported+"'")
		}
		if slices.Contains([]string{"terminatingTLS", "originatingTLS", "listener"}, k) {
			add(there(k), "'."+k+": "+notSupported+"'")
		}
	}
	if len(peers) > 1 {
		set := list(peers) + ".filter(p, p in $ && $[p] != null && $[p].size() > 0)"
		add(set+".size() > 1", "': combines ' + "+set+".join(' and ') + ': a rule takes peers of one kind, write a rule for each'")
	}
	if has("endpointSelector", "nodeSelector") {
		add("has($.endpointSelector) && has($.nodeSelector)", "': has both endpointSelector and nodeSelector: only one may be set'")
		add("!has($.endpointSelector) && !has($.nodeSelector)", "': endpointSelector is missing'")
		add("!['ingress', 'ingressDeny', 'egress', 'egressDeny'].exists(p, p in $ && $[p] != null && $[p].size() > 0)",
			"': needs a rule in ingress, ingressDeny, egress or egressDeny'")
	}
	if has("toPorts", "icmps") {
		add(filled("toPorts")+" && "+filled("icmps"), "'.icmps: can\\'t stand beside toPorts: write a rule of its own for either'")
	}
	if has("cidr", "cidrGroupRef", "cidrGroupSelector") {
		add("['cidr', 'cidrGroupRef', 'cidrGroupSelector'].filter(p, p in $).size() != 1", "': needs exactly one of cidr, cidrGroupRef and cidrGroupSelector'")
	}
	if has("matchName", "matchPattern") {
		add("has($.matchName) == has($.matchPattern)", "': needs matchName or matchPattern, one of them'")
	}
	if has("http", "dns", "kafka") {
		add("['http', 'dns', 'kafka'].filter(p, p in $).size() != 1", "': needs exactly one of http, dns and kafka'")
	}
	if has("port", "protocol") {
		add("has($.protocol) && $.protocol in ['VRRP', 'IGMP', 'GRE', 'IPIP', 'IPV6', 'ESP', 'AH'] && has($.port) && $.port != '0' && $.port.matches('^[0-9]+$')",
			"'.port: protocol ' + $.protocol + ' has no ports, write \"0\"'")
	}
	if has("role", "apiKey") {
		add("has($.role) && has($.apiKey) && $.role != '' && $.apiKey != ''", "': has both role and apiKey: only one may be set'")
	}
	if has("mismatch", "secret") {
		add(there("secret"), "'.secret: is not supported: the value can\\'t be read; write it as value'")
	}
	if has("operator", "values") {
		values := "(has($.values) && $.values.size() > 0)"
		add("has($.operator) && $.operator in ['In', 'NotIn'] && !"+values, "'.values: is missing: operator ' + $.operator + ' needs at least one'")
		add("has($.operator) && $.operator in ['Exists', 'DoesNotExist'] && "+values, "'.values: must be empty with operator ' + $.operator")
	}
	if has("ports", "rules") {
		judged := "(has($.rules) && $.rules != null && ['http', 'kafka'].exists(p, p in $.rules && $.rules[p] != null && $.rules[p].size() > 0))"
		add(judged+" && "+filled("ports")+" && $.ports.exists(p, !has(p.protocol) || p.protocol != 'TCP')", "'.ports: HTTP and Kafka rules need protocol TCP'")
		add(judged+" && "+filled("serverNames"), "'.serverNames: can\\'t stand beside L7 rules: what is inside TLS can\\'t be seen'")
	}
	return out
}

const notSupported = "is not supported: the policy can\\'t be enforced as written"

// there tells that a field has a value, filled that it is a list with items.
func there(key string) string  { return "has($." + key + ") && $." + key + " != null" }
func filled(key string) string { return there(key) + " && $." + key + ".size() > 0" }

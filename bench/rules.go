package main

import "fmt"

// rule is one HTTP rule in the form every proxy here can hold: regular
// expressions over the whole method and the whole path with its query.
type rule struct{ Method, Path string }

// ruleSet is what a port of a proxy enforces; the last rule matches the
// request that is measured.
type ruleSet struct {
	Port  int
	Rules []rule
}

// Ports. Everything behind a proxy is the same server on l4Port for the
// rivals, which are asked on a port per rule set; Weir leaves the port as it
// is, so the server listens on all of them.
const (
	l4Port       = 80
	oneRulePort  = 8001
	hundredPort  = 8100
	thousandPort = 9000
	tcpPort      = 7000 // and those after it, see tcpPorts
	probePort    = 7010
)

func ruleSets() []ruleSet {
	return []ruleSet{
		{Port: oneRulePort, Rules: makeRules(1)},
		{Port: hundredPort, Rules: makeRules(100)},
		{Port: thousandPort, Rules: makeRules(1000)},
	}
}

// makeRules writes n rules as an API description would yield them: a literal
// prefix that differs late, a number at the end.
func makeRules(n int) []rule {
	rules := make([]rule, n)
	for i := range rules {
		rules[i] = rule{Method: "GET", Path: fmt.Sprintf("/api/v1/resource%04d/[0-9]+", i+1)}
	}
	return rules
}

// request is the path that only the last rule of the port's set allows; item
// 1048576 is answered with that many bytes, any other with a few.
func request(port, item int) string {
	n := 1
	for _, s := range ruleSets() {
		if s.Port == port {
			n = len(s.Rules)
		}
	}
	return fmt.Sprintf("/api/v1/resource%04d/%d", n, item)
}

const (
	smallItem = 42
	largeItem = 1 << 20
)

package main

import (
	"slices"
	"strings"

	"github.com/weirnet/weir/endpoint"
)

// printNodePolicy tells what is enforced on the node itself:
//
//	node     closed for ingress by CiliumClusterwideNetworkPolicy lock, on eth0, eth1
//	         always open: ssh: in TCP 22
//	                      dhcp: out UDP 67, in UDP 68
//	                      ...
func printNodePolicy(w *errWriter, h *endpoint.HostStatus) {
	if h == nil {
		return
	}
	if !h.Enforced {
		w.printf("node     POLICIES SELECT IT, BUT ARE NOT ENFORCED YET\n")
		return
	}
	var closed []string
	if h.Ingress {
		closed = append(closed, "closed for ingress by "+strings.Join(h.IngressPolicies, ", "))
	}
	if h.Egress {
		closed = append(closed, "closed for egress by "+strings.Join(h.EgressPolicies, ", "))
	}
	if len(closed) == 0 {
		closed = append(closed, "under policies that close nothing by default")
	}
	on := "towards its pods only"
	if len(h.Interfaces) > 0 {
		on = "on " + strings.Join(h.Interfaces, ", ") + " and towards its pods"
	}
	w.printf("node     %s, %s\n", strings.Join(closed, "; "), on)
	if len(h.Unguarded) > 0 {
		w.printf("         NOT ENFORCED on %s\n", strings.Join(h.Unguarded, ", "))
	}
	if len(h.Failsafe) == 0 {
		w.printf("         nothing is open to it all the same\n")
		return
	}
	for i, line := range failsafeLines(h.Failsafe) {
		lead := "             "
		if i == 0 {
			lead = "always open: "
		}
		w.printf("         %s%s\n", lead, line)
	}
}

// failsafeLines gathers what has one name, and what goes both ways.
func failsafeLines(items []string) []string {
	var names []string
	by := map[string][]string{}
	for _, item := range items {
		name, what, ok := strings.Cut(item, ": ")
		if !ok {
			name, what = "besides", item
		}
		if by[name] == nil {
			names = append(names, name)
		}
		by[name] = append(by[name], what)
	}
	for i, name := range names {
		var parts []string
		for _, what := range by[name] {
			in, isIn := strings.CutPrefix(what, "in ")
			out, isOut := strings.CutPrefix(what, "out ")
			switch {
			case isIn && slices.Contains(by[name], "out "+in):
				parts = append(parts, "in and out "+in)
			case isOut && slices.Contains(by[name], "in "+out): // told
			default:
				parts = append(parts, what)
			}
		}
		names[i] = name + ": " + strings.Join(parts, ", ")
	}
	return names
}

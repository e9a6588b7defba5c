package main

import (
	"strings"

	"github.com/weirnet/weir/endpoint"
)

// printNodePolicy tells what is enforced on the node itself:
//
//	node     closed for ingress by CiliumClusterwideNetworkPolicy lock, on eth0, eth1
//	         always open: ssh: in TCP 22; ...
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
	always := "nothing"
	if len(h.Failsafe) > 0 {
		always = strings.Join(h.Failsafe, "; ")
	}
	w.printf("         always open: %s\n", always)
}

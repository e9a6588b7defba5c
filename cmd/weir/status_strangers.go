package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/weirnet/weir/endpoint"
)

// printStrangers shows the interfaces that no object says whose they are.
func printStrangers(w *errWriter, strangers []endpoint.StrangerStatus) {
	if len(strangers) == 0 {
		return
	}
	w.printf("\nveths that no pod's object tells of\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "VETH\tADDRESSES\tSTATE\n")
	for _, s := range strangers {
		var addrs []string
		for _, a := range s.Addresses {
			if !a.IsLinkLocalUnicast() {
				addrs = append(addrs, a.String())
			}
		}
		if len(addrs) == 0 {
			addrs = []string{"-"}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", s.Veth, strings.Join(addrs, ","), strangerText(s))
	}
	w.keep(t.Flush())
}

func strangerText(s endpoint.StrangerStatus) string {
	switch s.State {
	case endpoint.StrangerStarting:
		return "starting, under its policy: " + strings.Join(s.Pods, " or ")
	case endpoint.StrangerDoubtful:
		return "starting, under the policies of all that it may be: " + strings.Join(s.Pods, " or ")
	case endpoint.StrangerUnknown:
		return "closed: an address of pods, and no pod that it could be"
	}
	return s.State
}

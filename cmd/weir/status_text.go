package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weirnet/weir/endpoint"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/kube"
	"github.com/weirnet/weir/redirect"
)

// print writes the status for people: first what is wrong.
func (s *agentStatus) print(out io.Writer) error {
	w := &errWriter{out: out}
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY"
	}
	w.printf("%s on node %s (state %s, pid %d, version %s)\n", ready, s.Node, s.State, s.PID, s.Version)
	for _, r := range s.Reasons {
		w.printf("  ! %s\n", r)
	}
	if s.Standby != "" {
		w.printf("  %s\n", s.Standby)
	}
	w.printf("\nobjects  %s: %s", s.Objects.From(), strings.Join(sortedKinds(s.Objects.Kinds), ", "))
	if s.Objects.Ignored > 0 {
		w.printf(", %d of kinds that mean nothing here", s.Objects.Ignored)
	}
	for _, lag := range s.Objects.Lags() {
		w.printf("\n         %s", lag)
	}
	for _, note := range s.Objects.Notes {
		w.printf("\n         note: %s", note)
	}
	if s.Standby != "" {
		w.printf("\n")
		printProblems(w, s.Objects.Problems)
		return w.err
	}
	w.printf("\npolicy   %s", s.policyLine())
	w.printf("\nproxy    %s\n", s.Proxy.line())
	w.keep(s.Proxy.others(w))
	printNotes(w, s.Proxy.Notes)
	printServices(w, s.Services)
	w.printf("tables   %s\n", tablesLine(s.Policy.Tables, s.Policy.Started))
	if len(s.Policy.HostAddresses) > 0 {
		w.printf("host     %s\n", hostLine(s.Policy.HostAddresses))
	}
	printNodePolicy(w, s.Policy.Host)
	if n := s.Lost.Limited + s.Lost.Full + s.Lost.Readers + s.Lost.Proxy; n > 0 {
		w.printf("records  %d lost: %d over the limit on drops, %d for a full ring, %d by slow readers, %d by the proxy\n",
			n, s.Lost.Limited, s.Lost.Full, s.Lost.Readers, s.Lost.Proxy)
	}
	if lost := s.Policy.Lost; lost.Count > 0 {
		w.printf("PROGRAMS WERE TAKEN OFF pods' interfaces by others, %s, last noticed %s on %s; they are attached again\n",
			plural(lost.Count, "time", "times"), lost.At.Local().Format(time.DateTime), lost.Interface)
	}
	printOvertaken(w, s.Policy.Overtaken)
	printTampered(w, s.Proxy.Tampered)
	printProblems(w, s.Objects.Problems)
	printEndpoints(w, s.Policy.Endpoints)
	printStrangers(w, s.Policy.Strangers)
	printDrops(w, s.Kernel)
	return w.err
}

// policyLine says how much policy is in force, and since when.
func (s *agentStatus) policyLine() string {
	switch {
	case s.Policy.Started:
	case s.Policy.Inherited:
		return "what a predecessor wrote is in force"
	default:
		return "none"
	}
	line := fmt.Sprintf("%d enforced, %d refused; revision %d", s.Objects.Policies()-s.Objects.Refused, s.Objects.Refused, s.Policy.Revision)
	if !s.Policy.At.IsZero() {
		line += fmt.Sprintf(", last written %s in %s", s.Policy.At.Local().Format(time.TimeOnly), s.Policy.TookNs.Round(10*time.Microsecond))
	}
	return line
}

// enforced is one line on what is: the policies that there are in all, and how
// many of this node's pods any of them selects.
func (s *agentStatus) enforced() string {
	selected := 0
	for _, e := range s.Policy.Endpoints {
		if len(e.IngressPolicies)+len(e.EgressPolicies) > 0 {
			selected++
		}
	}
	return fmt.Sprintf("enforced: revision %d, %s; %d of this node's %s selected", s.Policy.Revision,
		plural(s.Objects.Policies(), "policy", "policies"), selected, plural(len(s.Policy.Endpoints), "pod is", "pods are"))
}

// printOvertaken tells whose programs come, or came, before Weir's.
func printOvertaken(w *errWriter, o endpoint.OvertakenPrograms) {
	if len(o.Now) > 0 {
		w.printf("PROGRAMS OF OTHERS RUN BEFORE Weir's, which can't be put first; what they let pass is not judged:\n")
		for _, where := range o.Now {
			w.printf("  %s\n", where)
		}
		return
	}
	if o.Count > 0 {
		w.printf("PROGRAMS OF OTHERS RAN BEFORE Weir's, %s, last noticed %s on %s (%s); Weir's are first again\n",
			plural(o.Count, "time", "times"), o.At.Local().Format(time.DateTime), o.Interface, o.By)
	}
}

// printTampered tells what others did to the programs on proxies' interfaces.
func printTampered(w *errWriter, t redirect.Tampered) {
	if t.Now != "" {
		w.printf("ANOTHER'S PROGRAM RUNS BEFORE Weir's, which can't be put first; what of the proxy's it lets pass is not checked:\n  %s\n", t.Now)
	}
	if t.Lost > 0 || t.Overtaken > 0 && t.Now == "" {
		w.printf("PROGRAMS of the proxy WERE TAKEN OFF by others %s, AND OVERTAKEN %s, last noticed %s on %s; they are in their place again\n",
			plural(t.Lost, "time", "times"), plural(t.Overtaken, "time", "times"), t.At.Local().Format(time.DateTime), t.Interface)
	}
}

func (p proxyStatus) line() string {
	if !p.Up {
		return "DOWN: " + p.Error + "; flows that need it wait"
	}
	var denied uint64
	for _, n := range p.Denied {
		denied += n
	}
	line := fmt.Sprintf("up, generation %d: %s, %d requests, %d denied", p.Generation,
		plural(int(p.Connections), "connection", "connections"), p.Requests, denied)
	if p.Names > 0 {
		line += fmt.Sprintf(", %s for %s", plural(int(p.Names), "name", "names"), plural(int(p.Addresses), "address", "addresses"))
	}
	if n := p.NamesCounts["full"]; n > 0 {
		line += fmt.Sprintf("; %d ADDRESSES OF NAMES FOUND NO ROOM", n)
	}
	return line
}

// others shows the generations besides the current one.
func (p proxyStatus) others(out io.Writer) error {
	w := &errWriter{out: out}
	for _, r := range p.Replaced {
		w.printf("         generation %d (%s) is replaced: %s left, %d handed over", r.Generation, r.Version,
			plural(int(r.Connections), "connection", "connections"), r.HandedOver)
		if !r.Until.IsZero() {
			w.printf(", ends by %s", r.Until.Local().Format(time.TimeOnly))
		}
		w.printf("\n")
	}
	for _, h := range p.Held {
		w.printf("         generation %d: %s, taken over\n", h.Generation, plural(int(h.Connections), "connection", "connections"))
	}
	return w.err
}

// hostShown is how many of the node's addresses are named; there may be one for
// each service (kube-proxy with IPVS).
const hostShown = 16

// hostLine names where the node itself is reached, and counts what is on each
// pod's interface anew.
func hostLine(addrs []netip.Addr) string {
	var parts []string
	local, more := 0, 0
	for _, a := range addrs {
		switch {
		case a.Is6() && a.IsLinkLocalUnicast():
			local++
		case len(parts) == hostShown:
			more++
		default:
			parts = append(parts, a.String())
		}
	}
	if more > 0 {
		parts = append(parts, fmt.Sprintf("%d more", more))
	}
	if local > 0 {
		parts = append(parts, fmt.Sprintf("%d link-local", local))
	}
	return strings.Join(parts, ", ")
}

// tablesLine tells what the tables hold. Before all objects were read nothing is
// to be written to them: what differs is a predecessor's, and stays.
func tablesLine(tables []endpoint.TableStatus, started bool) string {
	var parts []string
	for _, t := range tables {
		part := fmt.Sprintf("%s %d", t.Name, t.Entries)
		if t.Pending > 0 && started {
			part += fmt.Sprintf(" (%d to be written)", t.Pending)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

func printProblems(w *errWriter, problems []kube.Problem) {
	if len(problems) == 0 {
		return
	}
	w.printf("\nPROBLEMS\n")
	for _, p := range problems {
		force := ""
		if p.Fallback {
			force = " (what was valid before is in force)"
		}
		w.printf("%-13s %s%s\n", p.Kind, p, force)
	}
}

func printEndpoints(w *errWriter, endpoints []endpoint.EndpointStatus) {
	w.printf("\n")
	if len(endpoints) == 0 {
		w.printf("no pods of this node\n")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "POD\tADDRESSES\tVETH\tIDENTITY\tINGRESS\tEGRESS\tSTATE\n")
	for _, e := range endpoints {
		var addrs []string
		for _, a := range e.Addresses {
			addrs = append(addrs, a.String())
		}
		veth := e.Veth
		if veth == "" {
			veth = "-"
		}
		state := e.State
		if state == endpoint.EndpointWaiting {
			state = "waiting for its interface"
		}
		if e.Error != "" {
			state += ": " + e.Error
		}
		fmt.Fprintf(t, "%s/%s\t%s\t%s\t%d\t%s\t%s\t%s\n", e.Namespace, e.Pod, strings.Join(addrs, ","), veth, e.Identity,
			enforcement(e.Ingress, e.IngressPolicies), enforcement(e.Egress, e.EgressPolicies), state)
	}
	w.keep(t.Flush())
}

// enforcement says what holds in one direction.
func enforcement(on bool, policies []string) string {
	switch {
	case !on && len(policies) == 0:
		return "open"
	case !on:
		return "open, " + plural(len(policies), "policy", "policies")
	case len(policies) == 0:
		return "closed"
	}
	return plural(len(policies), "policy", "policies")
}

func printDrops(w *errWriter, counts []flow.KernelCount) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := false
	for _, c := range counts {
		if !c.Drop || c.Packets == 0 {
			continue
		}
		if !head {
			w.printf("\n")
			fmt.Fprintf(t, "DROPPED\tDIRECTION\tPACKETS\tBYTES\tMEANS\n")
			head = true
		}
		means := ""
		if r, ok := flow.ParseReason(c.Reason); ok {
			means = r.Explanation()
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\n", c.Reason, c.Direction, c.Packets, c.Bytes, means)
	}
	w.keep(t.Flush())
}

// errWriter keeps the first error, so that it is asked for once.
type errWriter struct {
	out io.Writer
	err error
}

func (w *errWriter) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.keep(err)
	return n, err
}

func (w *errWriter) printf(format string, args ...any) { fmt.Fprintf(w, format, args...) }

func (w *errWriter) keep(err error) {
	if w.err == nil {
		w.err = err
	}
}

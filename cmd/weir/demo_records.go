package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/flow"
)

// demoRecords are the flow records of the demo's node, as `weir flows -f`
// prints them.
type demoRecords struct {
	stop func() error

	mu  sync.Mutex
	all []flow.Record
}

func (d *demoRecords) add(r flow.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, r)
}

// of are the records of an ask: by its source port where that is known.
// Of a request on an open connection there is only the proxy's record, and the
// path tells which; on a new one the path may be another: as the server reads
// it.
func (d *demoRecords) of(a *demoResult, from, to netip.AddrPort, since time.Time) []flow.Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	var mine []flow.Record
	for _, r := range d.all {
		switch {
		case r.Dest.Addr != to.Addr(), to.Port() != 0 && r.Dest.Port != to.Port():
		case from.Addr().IsValid() && r.Source.Addr != from.Addr():
		case from.Port() != 0 && r.Source.Port != from.Port():
		case r.HTTP == nil && !a.fresh:
		case r.DNS != nil && r.DNS.Name != a.path:
		case r.HTTP != nil && (r.HTTP.Method != a.verb || !a.fresh && r.HTTP.Path != a.path):
		case r.Time.Before(since) && r.HTTP != nil:
		case r.Time.Before(since.Add(-20 * time.Millisecond)): // the kernel's times come by way of another clock
		default:
			mine = append(mine, r)
		}
	}
	slices.SortStableFunc(mine, func(x, y flow.Record) int { return x.Time.Compare(y.Time) })
	return mine
}

// shortKind puts in the names that kubectl takes for kinds.
func shortKind(policy string) string {
	return strings.NewReplacer(
		"CiliumClusterwideNetworkPolicy ", "ccnp ", "CiliumNetworkPolicy ", "cnp ", "NetworkPolicy ", "netpol ",
	).Replace(policy)
}

// deciding names what decided, shortly.
func deciding(r flow.Record) string {
	switch {
	case r.Rule != nil && r.Rule.Policy != "":
		return shortKind(r.Rule.Policy)
	case r.Reason == flow.ReasonHost.String():
		return "the node's own pod"
	case r.Verdict == flow.Dropped && len(r.Policies) > 0:
		return shortKind(strings.Join(r.Policies, ", "))
	case r.Verdict == flow.Dropped:
		return r.Reason
	}
	return "no policy"
}

// why explains a record in a few words.
func why(r flow.Record) string {
	if r.Rule != nil && r.Rule.Policy != "" {
		text := shortKind(r.Rule.Policy)
		if r.Rule.File != "" {
			text += fmt.Sprintf(" (%s:%d)", filepath.Base(r.Rule.File), r.Rule.Line)
		}
		return text
	}
	if r.Verdict == flow.Dropped && len(r.Policies) > 0 {
		return "no rule of " + shortKind(strings.Join(r.Policies, ", ")) + " allows it"
	}
	if r.Reason == flow.ReasonPolicyAllowed.String() {
		return "no rule denies it, and nothing else is asked for"
	}
	if reason, ok := flow.ParseReason(r.Reason); ok {
		return reason.Explanation()
	}
	return r.Reason
}

// showRecord writes one record as a line.
func (d *demo) showRecord(a *demoResult, r flow.Record) {
	where, color := "kernel", paintGreen
	if r.Layer == "L7" {
		where = "proxy"
	}
	switch r.Verdict {
	case flow.Redirected:
		color = paintYellow
	case flow.Dropped:
		color = paintRed
	}
	verdict := strings.ToLower(r.Verdict.String())
	text := why(r)
	if r.DNS != nil && len(r.DNS.Addresses) > 0 {
		text += ": " + r.DNS.Addresses[0].String()
	}
	if r.HTTP != nil && r.HTTP.Path != a.path {
		text += ", read as " + r.HTTP.Path
	}
	if r.HTTP != nil && r.HTTP.Status != 0 && r.HTTP.Latency > 0 {
		text += fmt.Sprintf(", answered in %.1f ms", float64(r.HTTP.Latency.Microseconds())/1000)
	}
	d.screen.say("      " + d.screen.paint(paintDim, fit(where, 8)) + d.screen.paint(color, fit(verdict, 12)) +
		d.screen.paint(paintDim, fit(r.Direction, 9)+strings.TrimRight(fit(text, demoWidth-35), " ")))
}

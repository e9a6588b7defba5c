// Package flow is what was seen: records of verdicts, a ring of the latest,
// and the metrics made of them.
package flow

import (
	"net/netip"
	"time"

	"github.com/weirnet/weir/policy"
)

// Record is one thing seen: a flow's verdict in the kernel, or one request in
// the proxy. Its JSON is what `weir flows -o json` prints, one a line. What it
// points to is shared between records and never changed.
type Record struct {
	Time time.Time `json:"time"`
	Node string    `json:"node,omitempty"`
	// Layer is "L3/L4" (kernel) or "L7" (proxy).
	Layer     string          `json:"layer"`
	Verdict   Verdict         `json:"verdict"`
	Reason    string          `json:"reason"`              // label of a Reason, or the proxy's
	Direction string          `json:"direction,omitempty"` // "ingress", "egress": the end that judged; empty: both
	Source    Peer            `json:"source"`
	Dest      Peer            `json:"destination"`
	Protocol  string          `json:"protocol"` // TCP, UDP, SCTP, ICMP, ICMPv6, or a number
	ICMPType  *uint8          `json:"icmpType,omitempty"`
	Rule      *policy.RuleRef `json:"rule,omitempty"` // what decided
	// Policies that select the pod that judged: what a default deny means.
	Policies []string `json:"policies,omitempty"`
	HTTP     *HTTP    `json:"http,omitempty"`
	DNS      *DNS     `json:"dns,omitempty"`
}

// Peer is one end.
type Peer struct {
	Addr      netip.Addr `json:"ip"`
	Port      uint16     `json:"port,omitempty"`
	Namespace string     `json:"namespace,omitempty"`
	Pod       string     `json:"pod,omitempty"`
	Identity  uint32     `json:"identity"`
	Labels    []string   `json:"labels,omitempty"` // "reserved:host", "k8s:app=web"
}

// DNS is one question and what came of it. Of a message that could not be read
// there is none of this.
type DNS struct {
	Name      string        `json:"name"`            // as it was asked, without the final dot; the root: "."
	Type      string        `json:"type"`            // "A", "TYPE65535"
	Class     string        `json:"class,omitempty"` // if not IN: "CH", "CLASS4660"
	RCode     string        `json:"rcode,omitempty"` // of the answer, the proxy's own or the server's; empty: there was none
	Addresses []netip.Addr  `json:"addresses,omitempty"`
	Chain     []string      `json:"chain,omitempty"` // of CNAMEs
	Latency   time.Duration `json:"latencyNs,omitempty"`
}

// HTTP is one request and what became of it.
type HTTP struct {
	Method   string        `json:"method"`
	Host     string        `json:"host,omitempty"`
	Path     string        `json:"path"`
	Protocol string        `json:"protocol"`            // "HTTP/1.1"
	Status   int           `json:"status,omitempty"`    // the server's, or the proxy's own
	Latency  time.Duration `json:"latencyNs,omitempty"` // until the response's head
}

// Verdict is what was done.
type Verdict uint8

const (
	Dropped    Verdict = 0
	Forwarded  Verdict = 1
	Redirected Verdict = 2
)

func (v Verdict) String() string {
	switch v {
	case Forwarded:
		return "FORWARDED"
	case Redirected:
		return "REDIRECTED"
	}
	return "DROPPED"
}

// MarshalText implements encoding.TextMarshaler.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; unknown text is Dropped.
func (v *Verdict) UnmarshalText(b []byte) error {
	switch string(b) {
	case "FORWARDED":
		*v = Forwarded
	case "REDIRECTED":
		*v = Redirected
	default:
		*v = Dropped
	}
	return nil
}

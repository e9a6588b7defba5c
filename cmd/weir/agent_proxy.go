package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weirnet/weir/redirect"
)

// proxyStatus is the proxy as the agent sees it.
type proxyStatus struct {
	Up          bool              `json:"up"`
	Error       string            `json:"error,omitempty"`
	Generation  uint32            `json:"generation,omitempty"`
	Version     string            `json:"version,omitempty"`
	UptimeNs    time.Duration     `json:"uptimeNs,omitempty"`
	Connections uint64            `json:"connections"`
	MaxConns    uint64            `json:"connectionsMax,omitempty"`
	Total       uint64            `json:"connectionsTotal"`
	Requests    uint64            `json:"requests"`
	Questions   uint64            `json:"questions"` // those of the requests that are DNS
	Denied      map[string]uint64 `json:"denied,omitempty"`
	RuleSets    uint64            `json:"ruleSets"`
	RSS         uint64            `json:"rssBytes,omitempty"`
	RecordsLost uint64            `json:"recordsLost"`
	Upstream    uint64            `json:"upstreamFailed"`
	Notes       []string          `json:"notes,omitempty"`
	// Names were learned, Addresses are those that they stand for.
	Names     uint64 `json:"names"`
	Addresses uint64 `json:"addresses"`
	// NamesCounts tell what else became of addresses in answers.
	NamesCounts map[string]uint64 `json:"namesCounts,omitempty"`
	// Place tells proxies on this node apart; 0: none has the new flows yet.
	Place int `json:"place,omitempty"`
	// Replaced are proxies that go on with what they are in the middle of.
	Replaced []replacedProxy `json:"replaced,omitempty"`
	// Held are connections of generations whose proxies may have ended.
	Held     []heldConnections `json:"held,omitempty"`
	Tampered redirect.Tampered `json:"tampered,omitzero"` // with its programs
}

// replacedProxy is one that the new flows do not go to any more.
type replacedProxy struct {
	Generation  uint32    `json:"generation"`
	Version     string    `json:"version,omitempty"`
	Connections uint64    `json:"connections"`
	HandedOver  uint64    `json:"handedOver"`
	Until       time.Time `json:"until,omitzero"` // when what is left is closed
}

// heldConnections are those that the proxy took over from others.
type heldConnections struct {
	Generation  uint32 `json:"generation"`
	Connections uint64 `json:"connections"`
}

// down tells why L7 rules can't be applied; "" if they can.
func (p proxyStatus) down() string {
	if p.Up {
		return ""
	}
	return "proxy: " + p.Error + " (flows that need it wait)"
}

// printNotes tells what of the proxy's process could not be set up as intended;
// which sysctls that were is for those who ask for all there is.
func printNotes(w *errWriter, notes []string) {
	sysctls := 0
	for _, note := range notes {
		if strings.HasPrefix(note, "sysctl ") {
			sysctls++
			continue
		}
		w.printf("         note: %s\n", note)
	}
	if sysctls > 0 {
		w.printf("         note: %s of its namespace could not be set, and need not be\n", plural(sysctls, "sysctl", "sysctls"))
	}
}

// proxyWatch asks the proxy how it is, and exports that.
type proxyWatch struct {
	manager                                               *redirect.Manager
	up, conns, requests, denied, lost, upstream, ruleSets *prometheus.Desc
	generations                                           *prometheus.Desc
	names, addresses, namesCounts                         *prometheus.Desc
}

func newProxyWatch(m *redirect.Manager) *proxyWatch {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &proxyWatch{
		manager:  m,
		up:       desc("weir_proxy_up", "1 if a proxy is wired and answers."),
		conns:    desc("weir_proxy_connections", "Connections through the proxy."),
		requests: desc("weir_proxy_requests_total", "Requests the proxy has read since it started, by protocol.", "protocol"),
		denied:   desc("weir_proxy_denied_total", "Requests and connections the proxy refused since it started, by reason.", "reason"),
		lost:     desc("weir_proxy_lost_records_total", "Records of requests that could not be kept until the agent took them."),
		upstream: desc("weir_proxy_upstream_failed_total", "Connections to servers that failed, as told to the client by a reset."),
		ruleSets: desc("weir_proxy_rule_sets", "Rule sets in force in the proxy."),
		generations: desc("weir_proxy_generation_connections",
			"Connections of each generation of the proxy: of the current one, of those that were replaced and have not ended, and of those whose connections the current one has taken over.",
			"generation", "state"),
		names:       desc("weir_proxy_names", "Names that were learned and stand for some address."),
		addresses:   desc("weir_proxy_addresses", "Addresses that names stand for."),
		namesCounts: desc("weir_proxy_names_total", "Addresses in answers that were refused since they can't be outside, found no room (full), or made room (evicted); answers that waited for an identity, and that went on with a narrower one.", "what"),
	}
}

// newCutConnections counts what proxies cut. They tell it at their end, so that
// it can't be asked for like the rest.
func newCutConnections() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name:        "weir_proxy_cut_connections_total",
		Help:        "Connections that a proxy reset when it ended, since this agent started, by reason (drain-ended: the time that they had was up).",
		ConstLabels: prometheus.Labels{"reason": "drain-ended"},
	})
}

// status asks with a short limit: whoever wants to know must not hang with it.
func (w *proxyWatch) status() proxyStatus {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	place, s, err := w.manager.Current(ctx)
	if err != nil {
		return proxyStatus{Error: err.Error(), Tampered: w.manager.Tampered()}
	}
	st := proxyStatus{
		Up: true, Generation: s.Generation, Version: s.Version, UptimeNs: time.Duration(s.Uptime),
		Connections: s.Connections, MaxConns: s.ConnectionsMax, Total: s.ConnectionsTotal,
		Requests: s.Requests, Questions: s.Questions, Denied: s.Denied, RuleSets: s.RuleSets, RSS: s.Rss,
		RecordsLost: s.RecordsDropped, Upstream: s.UpstreamFailed, Notes: s.Notes,
		Tampered: w.manager.Tampered(), Place: place,
		Names: s.Names, Addresses: s.Addresses, NamesCounts: s.NamesCounts,
	}
	for _, h := range s.Held {
		if h.Connections > 0 {
			st.Held = append(st.Held, heldConnections{Generation: h.Generation, Connections: h.Connections})
		}
	}
	for _, r := range w.manager.Replaced(ctx) {
		old := replacedProxy{Generation: r.Generation, Version: r.Version, Connections: r.Connections, HandedOver: r.HandedOver}
		if r.DrainUntil != 0 {
			old.Until = time.Unix(0, r.DrainUntil)
		}
		st.Replaced = append(st.Replaced, old)
	}
	return st
}

// Describe implements prometheus.Collector.
func (w *proxyWatch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{w.up, w.conns, w.requests, w.denied, w.lost, w.upstream, w.ruleSets, w.generations, w.names, w.addresses, w.namesCounts} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (w *proxyWatch) Collect(ch chan<- prometheus.Metric) {
	s := w.status()
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	if !s.Up {
		gauge(w.up, 0)
		return
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(w.up, 1)
	gauge(w.conns, float64(s.Connections))
	gauge(w.ruleSets, float64(s.RuleSets))
	gauge(w.names, float64(s.Names))
	gauge(w.addresses, float64(s.Addresses))
	for what, n := range s.NamesCounts {
		counter(w.namesCounts, n, what)
	}
	counter(w.requests, s.Requests-min(s.Requests, s.Questions), "http")
	counter(w.requests, s.Questions, "dns")
	counter(w.lost, s.RecordsLost)
	counter(w.upstream, s.Upstream)
	for reason, n := range s.Denied {
		counter(w.denied, n, reason)
	}
	generation := func(g uint32, state string, n uint64) {
		ch <- prometheus.MustNewConstMetric(w.generations, prometheus.GaugeValue, float64(n), strconv.FormatUint(uint64(g), 10), state)
	}
	own := s.Connections
	for _, h := range s.Held {
		own -= min(own, h.Connections)
		generation(h.Generation, "held", h.Connections)
	}
	generation(s.Generation, "current", own)
	for _, r := range s.Replaced {
		generation(r.Generation, "draining", r.Connections)
	}
}

package main

import (
	"context"
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
	Denied      map[string]uint64 `json:"denied,omitempty"`
	RuleSets    uint64            `json:"ruleSets"`
	RSS         uint64            `json:"rssBytes,omitempty"`
	RecordsLost uint64            `json:"recordsLost"`
	Upstream    uint64            `json:"upstreamFailed"`
	Notes       []string          `json:"notes,omitempty"`
	Tampered    redirect.Tampered `json:"tampered,omitzero"` // with its programs
}

// down tells why L7 rules can't be applied; "" if they can.
func (p proxyStatus) down() string {
	if p.Up {
		return ""
	}
	return "proxy: " + p.Error + " (flows that need it wait)"
}

// proxyWatch asks the proxy how it is, and exports that.
type proxyWatch struct {
	manager                                               *redirect.Manager
	up, conns, requests, denied, lost, upstream, ruleSets *prometheus.Desc
}

func newProxyWatch(m *redirect.Manager) *proxyWatch {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &proxyWatch{
		manager:  m,
		up:       desc("weir_proxy_up", "1 if a proxy is wired and answers."),
		conns:    desc("weir_proxy_connections", "Connections through the proxy."),
		requests: desc("weir_proxy_requests_total", "Requests the proxy has read since it started."),
		denied:   desc("weir_proxy_denied_total", "Requests and connections the proxy refused since it started, by reason.", "reason"),
		lost:     desc("weir_proxy_lost_records_total", "Records of requests that could not be kept until the agent took them."),
		upstream: desc("weir_proxy_upstream_failed_total", "Connections to servers that failed, as told to the client by a reset."),
		ruleSets: desc("weir_proxy_rule_sets", "Rule sets in force in the proxy."),
	}
}

// status asks with a short limit: whoever wants to know must not hang with it.
func (w *proxyWatch) status() proxyStatus {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := w.manager.Status(ctx)
	if err != nil {
		return proxyStatus{Error: err.Error(), Tampered: w.manager.Tampered()}
	}
	return proxyStatus{
		Up: true, Generation: s.Generation, Version: s.Version, UptimeNs: time.Duration(s.Uptime),
		Connections: s.Connections, MaxConns: s.ConnectionsMax, Total: s.ConnectionsTotal,
		Requests: s.Requests, Denied: s.Denied, RuleSets: s.RuleSets, RSS: s.Rss,
		RecordsLost: s.RecordsDropped, Upstream: s.UpstreamFailed, Notes: s.Notes,
		Tampered: w.manager.Tampered(),
	}
}

// Describe implements prometheus.Collector.
func (w *proxyWatch) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{w.up, w.conns, w.requests, w.denied, w.lost, w.upstream, w.ruleSets} {
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
	counter(w.requests, s.Requests)
	counter(w.lost, s.RecordsLost)
	counter(w.upstream, s.Upstream)
	for reason, n := range s.Denied {
		counter(w.denied, n, reason)
	}
}

package kube

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Collector exports what was read, and what it takes to follow the API server.
func (c *Cluster) Collector() prometheus.Collector {
	kind := []string{"kind"}
	return &clusterCollector{
		collector: newCollector(c.Report), cluster: c,
		upToDate: prometheus.NewDesc("weir_kube_up_to_date", "1 if the kind is followed; 0 if what is in force may be old.", kind, nil),
		missing:  prometheus.NewDesc("weir_kube_missing", "1 if the cluster has no such kind: its CRD is not installed.", kind, nil),
		heard:    prometheus.NewDesc("weir_kube_last_event_timestamp_seconds", "When the API server last sent an object of the kind, or that nothing has changed.", kind, nil),
		restarts: prometheus.NewDesc("weir_kube_watch_restarts_total", "Watches that went on where the one before had ended.", kind, nil),
		relists:  prometheus.NewDesc("weir_kube_relists_total", "How often all objects of the kind had to be read again.", kind, nil),
		bytes:    prometheus.NewDesc("weir_kube_received_bytes_total", "Bytes of answers, uncompressed.", kind, nil),
		requests: prometheus.NewDesc("weir_kube_requests_total", "Requests to the API server: list or watch, and the class of the answer's status (none: there was no answer).", []string{"kind", "verb", "status"}, nil),
	}
}

type clusterCollector struct {
	*collector
	cluster                                                      *Cluster
	upToDate, missing, heard, restarts, relists, bytes, requests *prometheus.Desc
}

func (c *clusterCollector) Describe(ch chan<- *prometheus.Desc) {
	c.collector.Describe(ch)
	for _, d := range []*prometheus.Desc{c.upToDate, c.missing, c.heard, c.restarts, c.relists, c.bytes, c.requests} {
		ch <- d
	}
}

func (c *clusterCollector) Collect(ch chan<- prometheus.Metric) {
	c.collector.Collect(ch)
	put := func(d *prometheus.Desc, as prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, as, v, labels...)
	}
	truth := map[bool]float64{true: 1}
	for n, w := range c.cluster.Report().Watches {
		put(c.upToDate, prometheus.GaugeValue, truth[w.Since.IsZero()], w.Kind)
		put(c.missing, prometheus.GaugeValue, truth[w.Missing], w.Kind)
		if !w.Heard.IsZero() {
			put(c.heard, prometheus.GaugeValue, float64(w.Heard.UnixMilli())/1000, w.Kind)
		}
		put(c.restarts, prometheus.CounterValue, float64(w.Restarts), w.Kind)
		put(c.relists, prometheus.CounterValue, float64(w.Relists), w.Kind)
		counts := c.cluster.counts[n]
		put(c.bytes, prometheus.CounterValue, float64(counts.bytes.Load()), w.Kind)
		for v, verb := range []string{"list", "watch"} {
			for s, status := range statusClasses {
				if n := counts.requests[v][s].Load(); n > 0 {
					put(c.requests, prometheus.CounterValue, float64(n), w.Kind, verb, status)
				}
			}
		}
	}
}

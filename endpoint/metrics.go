package endpoint

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weirnet/weir/bpf"
)

// Metrics of realising.
type Metrics struct {
	realise   prometheus.Histogram
	errors    *prometheus.CounterVec
	lost      prometheus.Counter
	overtaken prometheus.Counter
	behind    prometheus.Gauge
	unguarded *prometheus.CounterVec
	late      *prometheus.CounterVec
}

// NewMetrics registers them with reg. What can be read off a status is added
// by Watch.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		realise: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "weir_realise_seconds",
			Help:    "Time to bring the kernel's tables to what the policies say, per batch of changes.",
			Buckets: prometheus.ExponentialBuckets(0.0002, 2.5, 12),
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_errors_total",
			Help: "Failures while computing (\"policy\") or writing (\"realise\") policy; each is retried.",
		}, []string{"doing"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_programs_lost_total",
			Help: "Times that somebody else took Weir's programs off a pod's interface. They were attached again.",
		}),
		overtaken: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_programs_overtaken_total",
			Help: "Times that another's program was found to run before Weir's on an interface, a pod's or the node's own.",
		}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weir_programs_behind",
			Help: "Interfaces, pods' or the node's own, where another's program runs before Weir's and could not be overtaken.",
		}),
	}
	m.unguarded = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weir_unguarded_packets_total",
		Help: "Packets that pods sent before Weir's programs were at their interface: \"before\" Weir, or while it was away, or \"while\" it ran. Neighbour discovery of the pods' kernels is among them.",
	}, []string{"agent"})
	m.late = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weir_unguarded_interfaces_total",
		Help: "Interfaces of pods that had sent something before Weir's programs were there.",
	}, []string{"agent"})
	for _, when := range []string{"before", "while"} {
		m.unguarded.WithLabelValues(when)
		m.late.WithLabelValues(when)
	}
	reg.MustRegister(m.realise, m.errors, m.lost, m.overtaken, m.behind, m.unguarded, m.late)
	for _, doing := range []string{"policy", "realise"} {
		m.errors.WithLabelValues(doing) // so that 0 is shown
	}
	return m
}

// noteUnguarded counts what a pod sent before its interface had the programs.
func (m *Metrics) noteUnguarded(packets uint64, live bool) {
	when := "before"
	if live {
		when = "while"
	}
	m.unguarded.WithLabelValues(when).Add(float64(packets))
	if packets > 0 {
		m.late.WithLabelValues(when).Inc()
	}
}

// RegisterCapacities exports how many entries each table can hold.
func RegisterCapacities(reg prometheus.Registerer, d *bpf.Datapath) error {
	usages, err := d.Usages()
	if err != nil {
		return err
	}
	capacity := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "weir_table_capacity",
		Help: "Entries a table of the kernel can hold; compare weir_table_entries.",
	}, []string{"table"})
	for _, u := range usages {
		capacity.WithLabelValues(u.Table).Set(float64(u.Max))
	}
	return reg.Register(capacity)
}

// Collector exports the manager's status.
func (m *Manager) Collector() prometheus.Collector {
	return &collector{
		m: m,
		endpoints: prometheus.NewDesc("weir_endpoints",
			"Pods of this node, by state: ready, waiting (no veth with their address), pending (policy not in the kernel yet).", []string{"state"}, nil),
		enforced: prometheus.NewDesc("weir_endpoints_enforced",
			"Pods of this node that are under default deny, by direction.", []string{"direction"}, nil),
		entries: prometheus.NewDesc("weir_table_entries",
			"Entries the agent keeps in a table of the kernel.", []string{"table"}, nil),
		pending: prometheus.NewDesc("weir_table_pending",
			"Entries of a table that are not as wanted yet.", []string{"table"}, nil),
		revision: prometheus.NewDesc("weir_policy_revision",
			"Revision of the policy in the kernel; it grows with every change.", nil, nil),
		realised: prometheus.NewDesc("weir_policy_realised",
			"1 if the kernel holds everything that was read.", nil, nil),
	}
}

type collector struct {
	m                                                         *Manager
	endpoints, enforced, entries, pending, revision, realised *prometheus.Desc
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.endpoints, c.enforced, c.entries, c.pending, c.revision, c.realised} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	s := c.m.Status()
	states := map[string]int{EndpointReady: 0, EndpointWaiting: 0, EndpointPending: 0}
	enforced := map[string]int{"ingress": 0, "egress": 0}
	for _, e := range s.Endpoints {
		states[e.State]++
		if e.Ingress {
			enforced["ingress"]++
		}
		if e.Egress {
			enforced["egress"]++
		}
	}
	for state, n := range states {
		gauge(c.endpoints, n, state)
	}
	for direction, n := range enforced {
		gauge(c.enforced, n, direction)
	}
	for _, t := range s.Tables {
		gauge(c.entries, t.Entries, t.Name)
		gauge(c.pending, t.Pending, t.Name)
	}
	gauge(c.revision, int(s.Revision))
	realised := 0
	if s.Realised {
		realised = 1
	}
	gauge(c.realised, realised)
}

package flow

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts records. What the kernel counts by itself (every dropped
// packet, also those too many to be recorded) is read from it by a collector
// of its own, see NewKernelCollector.
type Metrics struct {
	flows         *prometheus.CounterVec
	requests      *prometheus.CounterVec
	latency       prometheus.Histogram
	questions     *prometheus.CounterVec
	answerLatency prometheus.Histogram

	// mu guards the counters found before: to spell the labels and look them up
	// takes longer, and memory.
	mu          sync.Mutex
	flowsOf     map[flowLabels]prometheus.Counter
	requestsOf  map[requestLabels]prometheus.Counter
	questionsOf map[questionLabels]prometheus.Counter
	policies    map[string]bool
}

type flowLabels struct {
	verdict           Verdict
	reason, direction string
}

type requestLabels struct {
	verdict Verdict
	status  int
	policy  string
}

type questionLabels struct {
	verdict               Verdict
	reason, rcode, policy string
}

// maxPolicyLabels bounds the values of the policy label; what comes later is
// counted under "other".
const maxPolicyLabels = 500

// Reasons and codes of questions are few, but it is the proxy who says them: one
// that somebody has taken over must not fill the agent's memory with others.
const (
	maxQuestionSeries = 8192
	maxReasonLabel    = 64
)

// NewMetrics registers the counters of records with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_flows_total",
			Help: "Flow verdicts recorded by the kernel: new flows, changed verdicts and drops (drops beyond a rate limit are in weir_drop_packets_total only).",
		}, []string{"verdict", "reason", "direction"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_http_requests_total",
			Help: "HTTP requests the proxy decided, by verdict, status code sent to the client and deciding policy (\"\": default deny; \"other\": beyond the first 500 policies).",
		}, []string{"verdict", "code", "policy"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "weir_http_response_seconds",
			Help:    "Time from a forwarded HTTP request's head to its response's head.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14),
		}),
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_dns_questions_total",
			Help: "DNS questions the proxy decided, by verdict, reason, code of the answer (\"none\": not answered) and deciding policy (\"\": default deny; \"other\": beyond the first 500 policies).",
		}, []string{"verdict", "reason", "rcode", "policy"}),
		answerLatency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "weir_dns_answer_seconds",
			Help:    "Time from a forwarded DNS question to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14),
		}),
		flowsOf:     map[flowLabels]prometheus.Counter{},
		requestsOf:  map[requestLabels]prometheus.Counter{},
		questionsOf: map[questionLabels]prometheus.Counter{},
		policies:    map[string]bool{},
	}
	reg.MustRegister(m.flows, m.requests, m.latency, m.questions, m.answerLatency)
	return m
}

// Observe counts one record. It may be called by several goroutines at once.
func (m *Metrics) Observe(r *Record) {
	policy := ""
	if r.Rule != nil {
		policy = r.Rule.Policy
	}
	switch {
	case r.HTTP != nil:
		m.request(requestLabels{r.Verdict, r.HTTP.Status, policy}).Inc()
		if r.Verdict != Dropped && r.HTTP.Latency > 0 {
			m.latency.Observe(r.HTTP.Latency.Seconds())
		}
	case r.DNS != nil:
		m.question(questionLabels{r.Verdict, r.Reason, r.DNS.RCode, policy}).Inc()
		if r.Verdict != Dropped && r.DNS.RCode != "" && r.DNS.Latency > 0 {
			m.answerLatency.Observe(r.DNS.Latency.Seconds())
		}
	default:
		m.flow(flowLabels{r.Verdict, r.Reason, r.Direction}).Inc()
	}
}

func (m *Metrics) flow(l flowLabels) prometheus.Counter {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.flowsOf[l]
	if c == nil {
		c = m.flows.WithLabelValues(l.verdict.String(), l.reason, l.direction)
		m.flowsOf[l] = c
	}
	return c
}

func (m *Metrics) request(l requestLabels) prometheus.Counter {
	if l.status != 0 && (l.status < 100 || l.status > 599) {
		l.status = otherStatus
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l.policy = m.policyLabel(l.policy)
	c := m.requestsOf[l]
	if c == nil {
		c = m.requests.WithLabelValues(l.verdict.String(), codeLabel(l.status), l.policy)
		m.requestsOf[l] = c
	}
	return c
}

func (m *Metrics) question(l questionLabels) prometheus.Counter {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.policy = m.policyLabel(l.policy)
	if len(l.reason) > maxReasonLabel {
		l.reason = "other"
	}
	c := m.questionsOf[l]
	if c == nil && len(m.questionsOf) >= maxQuestionSeries {
		l.reason, l.rcode, l.policy = "other", "other", "other"
		c = m.questionsOf[l]
	}
	if c == nil {
		rcode := l.rcode
		if rcode == "" {
			rcode = "none"
		}
		c = m.questions.WithLabelValues(l.verdict.String(), l.reason, rcode, l.policy)
		m.questionsOf[l] = c
	}
	return c
}

// otherStatus stands for all that are none, which bounds what a server can
// make the label say.
const otherStatus = -1

func codeLabel(status int) string {
	switch status {
	case 0:
		return "none"
	case otherStatus:
		return "other"
	}
	return strconv.Itoa(status)
}

func (m *Metrics) policyLabel(name string) string {
	if name != "" && !m.policies[name] {
		if len(m.policies) >= maxPolicyLabels {
			return "other"
		}
		m.policies[name] = true
	}
	return name
}

// KernelCount is what the kernel counted for one reason and direction.
type KernelCount struct {
	Reason    string `json:"reason"`
	Direction string `json:"direction"`
	Drop      bool   `json:"drop"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// KernelCounts is what the kernel counted since its tables were made.
type KernelCounts struct {
	Reasons []KernelCount
	// Verdicts that were counted but not recorded one by one.
	Limited, Full uint64
}

// NewKernelCollector returns a collector that reads the kernel's counters at
// each scrape: dropped packets and new flows, by reason, and what was lost.
func NewKernelCollector(read func() (KernelCounts, error), readersLost *atomic.Uint64) prometheus.Collector {
	return &kernelCollector{
		read: read, readersLost: readersLost,
		drops: prometheus.NewDesc("weir_drop_packets_total",
			"Packets dropped in the kernel, by reason and the direction that judged.", []string{"reason", "direction"}, nil),
		dropBytes: prometheus.NewDesc("weir_drop_bytes_total",
			"Bytes of the packets in weir_drop_packets_total.", []string{"reason", "direction"}, nil),
		passed: prometheus.NewDesc("weir_new_flows_total",
			"New flows the kernel let pass or sent to the proxy, by reason and direction.", []string{"reason", "direction"}, nil),
		events: prometheus.NewDesc("weir_lost_records_total",
			"Records that were lost: at \"limit\" because drops came too fast to tell each, at \"kernel\" because its ring was full, at \"reader\" because someone who follows flows was too slow.", []string{"at"}, nil),
		failed: prometheus.NewDesc("weir_kernel_metrics_readable",
			"1 if the kernel's counters could be read at this scrape.", nil, nil),
	}
}

type kernelCollector struct {
	read                                     func() (KernelCounts, error)
	readersLost                              *atomic.Uint64
	drops, dropBytes, passed, events, failed *prometheus.Desc
}

func (c *kernelCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.drops, c.dropBytes, c.passed, c.events, c.failed} {
		ch <- d
	}
}

func (c *kernelCollector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	counts, err := c.read()
	readable := 1.0
	if err != nil {
		readable = 0
	}
	ch <- prometheus.MustNewConstMetric(c.failed, prometheus.GaugeValue, readable)
	for _, k := range counts.Reasons {
		if k.Drop {
			counter(c.drops, k.Packets, k.Reason, k.Direction)
			counter(c.dropBytes, k.Bytes, k.Reason, k.Direction)
		} else {
			counter(c.passed, k.Packets, k.Reason, k.Direction)
		}
	}
	if err == nil {
		counter(c.events, counts.Limited, "limit")
		counter(c.events, counts.Full, "kernel")
	}
	counter(c.events, c.readersLost.Load(), "reader")
}

package kube

import "github.com/prometheus/client_golang/prometheus"

// Collector exports what was read: objects by kind, policies by state, and
// what is wrong.
func (d *Dir) Collector() prometheus.Collector { return newCollector(d.Report) }

func newCollector(report func() Report) *collector {
	return &collector{
		report:   report,
		objects:  prometheus.NewDesc("weir_objects", "Objects read, by kind.", []string{"kind"}, nil),
		policies: prometheus.NewDesc("weir_policies", "Policy objects, by state: enforced, or refused (what they select is closed).", []string{"state"}, nil),
		problems: prometheus.NewDesc("weir_object_problems", "What is wrong with the objects: broken-file, broken-object, duplicate, refused, suspicious.", []string{"kind"}, nil),
		complete: prometheus.NewDesc("weir_objects_complete", "0 if something could never be read, so that policy may be missing.", nil, nil),
	}
}

type collector struct {
	report                                func() Report
	objects, policies, problems, complete *prometheus.Desc
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.objects, c.policies, c.problems, c.complete} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	r := c.report()
	for kind, n := range r.Kinds {
		gauge(c.objects, n, kind)
	}
	gauge(c.policies, r.Refused, "refused")
	gauge(c.policies, r.Policies()-r.Refused, "enforced")
	counts := map[ProblemKind]int{BrokenFile: 0, BrokenObject: 0, Duplicate: 0, Refused: 0, Suspicious: 0}
	for _, p := range r.Problems {
		counts[p.Kind]++
	}
	for kind, n := range counts {
		gauge(c.problems, n, string(kind))
	}
	complete := 0
	if r.Complete {
		complete = 1
	}
	gauge(c.complete, complete)
}

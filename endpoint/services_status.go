package endpoint

import (
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weirnet/weir/bpf"
)

// ServicesStatus is how pods' connections to services are translated.
type ServicesStatus struct {
	// Why they are not, and kube-proxy does it all; "" if they are.
	Why string `json:"why,omitempty"`
	// Cgroup whose processes' sockets are seen.
	Cgroup    string `json:"cgroup,omitempty"`
	Services  int    `json:"services"`  // and pods with host ports
	Frontends int    `json:"frontends"` // addresses and ports that lead to them
	Backends  int    `json:"backends"`
	// Pods of this node that have processes, and those of them that have some
	// outside of the cgroup ("namespace/name"): theirs are not translated.
	Pods    int      `json:"pods"`
	Outside []string `json:"outside,omitempty"`
	// Counts by the kernel, since the tables were made.
	Translated uint64 `json:"translated"`
	Refused    uint64 `json:"refused"` // no backend
	Stale      uint64 `json:"stale"`   // left to kube-proxy: no agent kept the tables
	Missing    uint64 `json:"missing"` // left to kube-proxy: a slot was empty, a table full
	// Destroyed counts sockets that were connected to backends which went.
	Destroyed uint64 `json:"destroyed"`
	Error     string `json:"error,omitempty"` // of what was tried last
	// Aside is how long ago the agent last said that it keeps the tables, if that
	// is so long that the programs have stepped aside: kube-proxy translates alone.
	Aside time.Duration `json:"asideNs,omitempty"`
}

// Status returns what the last pass left, and the counts of now.
func (s *Services) Status() ServicesStatus {
	s.mu.Lock()
	out := s.shown
	s.mu.Unlock()
	if s.opts.Kernel == nil {
		return out
	}
	counts, err := s.opts.Kernel.Counts()
	if err != nil {
		out.Error = err.Error()
	}
	if age, ever := s.opts.Kernel.SinceAlive(); ever && age > bpf.ServicesStaleAfter && out.Cgroup != "" {
		out.Aside = age
		if out.Why == "" {
			out.Why = out.Error
		}
		if out.Why == "" { // this agent's own fault
			out.Why = fmt.Sprintf("the agent has not said for %v that it keeps the tables", age.Round(time.Second))
		}
	}
	out.Translated, out.Refused, out.Stale, out.Missing = counts.Translated, counts.Refused, counts.Stale, counts.Missing
	return out
}

// show keeps a status for readers.
func (s *Services) show(err error, stuck string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	services := map[string]bool{}
	backends := map[bpf.Backend]bool{}
	for key, set := range s.tables.sets {
		services[key.Service.Namespace+"/"+key.Service.Name] = true
		for _, b := range set.slots {
			backends[b] = true
		}
	}
	s.shown.Services, s.shown.Frontends, s.shown.Backends = len(services), len(s.tables.at), len(backends)
	s.shown.Cgroup, s.shown.Destroyed = s.attached, s.destroyer.count()
	s.shown.Why, s.shown.Error = stuck, ""
	if e := s.destroyer.failure(); e != nil {
		s.shown.Error = e.Error()
	}
	switch {
	case err != nil:
		s.shown.Error = err.Error()
		if s.attached == "" {
			s.shown.Why = err.Error()
		}
	case s.probed != nil:
		s.shown.Why = s.probed.Error()
	}
}

// lookForPods finds the pods with processes outside of the cgroup.
func (s *Services) lookForPods() {
	if s.opts.Pods == nil {
		return
	}
	pods, outside, err := podsOutside(s.attached, s.opts.Pods())
	if err != nil {
		s.log.Warn("whether pods' processes are in the cgroup is not known", "cgroup", s.attached, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(outside) > 0 && !slices.Equal(outside, s.shown.Outside) {
		s.log.Error("services are not translated for all processes of these pods", "cgroup", s.attached, "pods", outside)
	}
	s.shown.Pods, s.shown.Outside = pods, outside
}

// Collector exports the status.
func (s *Services) Collector() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &servicesCollector{
		s: s,
		sockets: desc("weir_service_sockets_total",
			"Connections and unconnected datagrams of pods to services: translated, no-backend (refused), stale and missing (left to kube-proxy: no agent kept the tables; a slot was empty or a table full).", "result"),
		destroyed: desc("weir_service_sockets_destroyed_total", "UDP sockets that were connected to a backend which went."),
		rows:      desc("weir_service_entries", "Services, frontends (addresses and ports) and backends that are translated.", "kind"),
		on:        desc("weir_service_translation", "1 if pods' connections to services are translated by Weir, 0 if that is left to kube-proxy."),
		outside:   desc("weir_service_pods_outside", "Pods of this node with processes outside of the cgroup where services are translated."),
	}
}

type servicesCollector struct {
	s                                     *Services
	sockets, destroyed, rows, on, outside *prometheus.Desc
}

func (c *servicesCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.sockets, c.destroyed, c.rows, c.on, c.outside} {
		ch <- d
	}
}

func (c *servicesCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Status()
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	count(c.sockets, st.Translated, "translated")
	count(c.sockets, st.Refused, "no-backend")
	count(c.sockets, st.Stale, "stale")
	count(c.sockets, st.Missing, "missing")
	count(c.destroyed, st.Destroyed)
	gauge(c.rows, st.Services, "services")
	gauge(c.rows, st.Frontends, "frontends")
	gauge(c.rows, st.Backends, "backends")
	gauge(c.outside, len(st.Outside))
	on := 0
	if st.Why == "" {
		on = 1
	}
	gauge(c.on, on)
}

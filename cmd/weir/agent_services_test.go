package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/endpoint"
)

// TestServicesStatus: where Weir does not translate that is said, why, and what
// holds then.
func TestServicesStatus(t *testing.T) {
	const instead = "\n         kube-proxy alone translates, and policy judges what pods send to a service's address by all of its backends\n"
	for _, c := range []struct {
		status endpoint.ServicesStatus
		want   string
	}{
		{endpoint.ServicesStatus{Why: "--cgroup none"}, "services NOT translated: --cgroup none; left to kube-proxy" + instead},
		{endpoint.ServicesStatus{Why: "the probe was not seen", Cgroup: "/pods"}, "services NOT translated at /pods: the probe was not seen; left to kube-proxy" + instead},
		{endpoint.ServicesStatus{Why: "no room", Error: "no room", Cgroup: "/pods", Aside: 72*time.Second + 300*time.Millisecond},
			"services HAVE STEPPED ASIDE at /pods, 1m12s after the tables were last said to be kept: no room" + instead},
		{endpoint.ServicesStatus{Cgroup: "/pods", Stale: 2}, "services 0 services at 0 addresses with ports, 0 backends, translated for pods in /pods: 0 times, 2 left to kube-proxy\n"},
	} {
		var out strings.Builder
		w := &errWriter{out: &out}
		if printServices(w, c.status); out.String() != c.want || w.err != nil {
			t.Errorf("%+v: %q, want %q", c.status, out.String(), c.want)
		}
	}
}

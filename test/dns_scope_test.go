package test

import (
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// claims has a server say that names stand for places.
func (s *story) claims(o *ownServer, labels map[string]string) {
	for label, at := range labels {
		o.on(label, func(q *dns.Msg) []*dns.Msg {
			family := 0
			if q.Question[0].Qtype == dns.TypeAAAA {
				family = 1
			}
			return []*dns.Msg{reply(q, addrRR(q.Question[0].Name, "3600", s.places[at].addrs[family]))}
		})
	}
}

// TestOwnServerTeachesOwnNamespace: who may write policies for a namespace can have
// its pods believe a server of its own, and nobody else's: what it claims a name
// stands for opens nothing to policies of other namespaces, nor to clusterwide
// ones, whichever pods they select.
func TestOwnServerTeachesOwnNamespace(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-scope.txtar")
	liar, cluster, side := &ownServer{}, &ownServer{}, &ownServer{}
	for _, o := range []*ownServer{liar, cluster, side} {
		o.answers = map[string]func(*dns.Msg) []*dns.Msg{}
	}
	s.serveAt(liar, s.places["monitoring/dns"], 5300)
	s.serveAt(cluster, s.places["kube-system/dns"], 53)
	s.serveAt(side, s.places["kube-system/dns"], 5300)
	s.claims(liar, map[string]string{"api": "claimed", "new": "taught"})
	s.claims(side, map[string]string{"api": "claimed2"})
	s.claims(cluster, map[string]string{"api": "api"})
	s.must("start")
	s.must("wait")

	// Claimed by UDP and by TCP, and by the cluster's server on another port.
	for _, line := range []string{
		"monitoring/prometheus resolve monitoring/dns:5300/api.example.test believed=monitoring => NOERROR addresses=claimed",
		"monitoring/prometheus resolve monitoring/dns:5300/api.example.test over=tcp believed=monitoring => NOERROR addresses=claimed",
		"monitoring/prometheus resolve kube-system/dns:5300/api.example.test believed=monitoring => NOERROR addresses=claimed2",
	} {
		s.check(line)
	}
	closed := func(when string) {
		t.Helper()
		for _, line := range []string{
			"monitoring/prometheus GET claimed:80/ => 200",
			"monitoring/prometheus GET claimed2:80/ => 200",
			"shop/worker GET claimed:80/ => dropped",
			"shop/worker GET claimed2:80/ => dropped",
			"shop/audited GET claimed:80/ => dropped",
			"monitoring/audited GET claimed:80/ => dropped",
		} {
			s.check(line)
		}
		if t.Failed() {
			t.Fatal(when)
		}
	}
	closed("at first")
	if got, want := s.names("api"), []string{"monitoring/api.example.test 4 of 4 [monitoring/prometheus]"}; !slices.Equal(got, want) {
		t.Errorf("weir fqdn lists %q, want %q", got, want)
	}

	// What the cluster's DNS says counts for all, also by way of its cluster IP.
	s.check("shop/worker GET api:80/ => dropped")
	s.check("monitoring/prometheus resolve kube-system/dns:53/api.example.test => NOERROR addresses=api")
	for _, from := range []string{"shop/worker", "shop/audited", "monitoring/audited", "monitoring/prometheus"} {
		s.check(from + " GET api:80/ => 200")
	}
	s.check("shop/worker resolve kube-system/kube-dns:53/api.example.test => NOERROR addresses=api")
	closed("with the true address")

	// The next proxy knows whom it counts for.
	w := s.nodes[0].Weir()
	if _, err := w.Command(t.Context(), "proxy", "replace"); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	closed("after the proxy was replaced")

	// A clusterwide policy that names the server has it teach all.
	s.must("apply trusted.yaml")
	s.must("wait")
	closed("what was learned before still counts where it did")
	s.check("monitoring/prometheus resolve monitoring/dns:5300/new.example.test => NOERROR addresses=taught")
	s.check("shop/worker GET taught:80/ => 200")
	s.check("monitoring/audited GET taught:80/ => 200")

	// Where the namespace has no such rule any more, nothing counts there alone.
	s.must("remove monitoring.yaml")
	s.must("wait")
	s.check("shop/worker GET claimed:80/ => dropped")
	s.check("shop/worker GET api:80/ => 200")
}

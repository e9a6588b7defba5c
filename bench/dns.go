package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Ports of the DNS servers in a server pod: unbound, and the one that makes
// its names up; dnsmasq is asked in the node's own namespace.
const (
	dnsPort     = 53
	madeUpPort  = 5353
	dnsmasqPort = 5300
	dnsNames    = 1000
	dnsmasq     = "dnsmasq"
)

// dnsStage is what the DNS cells need besides the stage: servers, names, and a
// world to connect to.
type dnsStage struct {
	queries string // file for dnsperf
	next    int    // first number of a name that was not asked for yet
}

// addDNS starts the servers of a node.
func (s *stage) addDNS(n *node) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	conf, err := writeConfig(s.dir, "unbound.conf", "unbound-"+n.name+".conf", configValues{Dir: s.dir, Name: n.name, Names: dnsNames})
	if err != nil {
		return err
	}
	for _, f := range []func() (*process, error){
		func() (*process, error) {
			return start(n.server().ns, s.dir, "unbound-"+n.name, nil, "unbound", "-d", "-c", conf)
		},
		func() (*process, error) {
			return start(n.server().ns, s.dir, "dns-"+n.name, nil, self, "dns-serve", fmt.Sprintf(":%d", madeUpPort))
		},
		func() (*process, error) {
			return start(n.world, s.dir, "world-"+n.name, nil, self, "dns-serve", "world")
		},
	} {
		p, err := s.started(f())
		if err != nil {
			return err
		}
		n.servers = append(n.servers, p)
	}
	var b strings.Builder
	for i := range dnsNames {
		fmt.Fprintf(&b, "host%d.bench.test A\n", i+1)
	}
	s.dns.queries = filepath.Join(s.dir, "queries")
	return os.WriteFile(s.dns.queries, []byte(b.String()), 0o644)
}

// addDnsmasq runs dnsmasq between the two pods of a node, as a forwarder that
// keeps nothing.
func (s *stage) addDnsmasq(n *node) (*process, error) {
	return s.started(start(n.name, s.dir, dnsmasq, nil, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts",
		"--no-resolv", "--cache-size=0", "--dns-forward-max=10000", "--user=root", "--pid-file", fmt.Sprintf("--port=%d", dnsmasqPort),
		fmt.Sprintf("--listen-address=%s", n.addr), "--bind-interfaces", fmt.Sprintf("--server=%s#%d", n.server().addr, dnsPort)))
}

// dnsLoad puts dnsperf's load on a target.
func dnsLoad(s *stage) func(context.Context, target, int, time.Duration) (sample, error) {
	return func(ctx context.Context, t target, port int, d time.Duration) (sample, error) {
		ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
		defer cancel()
		to := t.to(port)
		out, cpu, err := runTimed(ctx, t.from.ns, "dnsperf", "-s", to.Addr().String(), "-p", fmt.Sprint(to.Port()), "-d", s.dns.queries,
			"-c", "8", "-T", "1", "-q", "100", "-l", strconv.Itoa(max(1, int(d.Seconds()+0.5))))
		if err != nil {
			return sample{}, err
		}
		rate, err := parseDnsperf(out)
		return sample{Rate: rate, client: cpu}, err
	}
}

// parseDnsperf finds the rate and refuses a run in which a question got no
// answer, or another one than it should.
func parseDnsperf(out []byte) (float64, error) {
	value := func(name string) string {
		_, rest, _ := strings.Cut(string(out), name)
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return ""
		}
		return fields[0]
	}
	rate, err := strconv.ParseFloat(value("Queries per second:"), 64)
	if err != nil {
		return 0, fmt.Errorf("read dnsperf's summary: %w in %q", err, out)
	}
	sent, done := value("Queries sent:"), value("Queries completed:")
	if lost := value("Queries lost:"); lost != "0" || sent != done {
		return 0, fmt.Errorf("load by dnsperf: %s of %s questions lost", lost, sent)
	}
	if !bytes.Contains(out, []byte("NOERROR "+done)) {
		return 0, fmt.Errorf("load by dnsperf: not all answers were NOERROR: %q", out)
	}
	return rate, nil
}

// runDNS runs a load of dnsload.go in a pod.
func runDNS(ctx context.Context, from pod, mode string, to netip.AddrPort, first, count int, d time.Duration) (dnsSummary, time.Duration, error) {
	var s dnsSummary
	self, err := os.Executable()
	if err != nil {
		return s, 0, err
	}
	out, cpu, err := runTimed(ctx, from.ns, self, "dns-load", mode, to.String(), fmt.Sprint(first), fmt.Sprint(count), d.String())
	if err != nil {
		return s, 0, err
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, 0, fmt.Errorf("read the DNS load's summary: %w", err)
	}
	return s, cpu, nil
}

// learnedPerSecond is how many new addresses come in while latency is
// measured.
const learnedPerSecond = 1000

// dnsLatencyLoad measures one question at a time while new names come in.
func dnsLatencyLoad(s *stage) func(context.Context, target, int, time.Duration) (sample, error) {
	return func(ctx context.Context, t target, port int, d time.Duration) (sample, error) {
		ctx, cancel := context.WithTimeout(ctx, d+30*time.Second)
		defer cancel()
		first := s.dns.next
		s.dns.next += int((d + 2*time.Second).Seconds()) * learnedPerSecond
		// The one that learns asks the server itself where a rival is measured:
		// what is compared there is only direct.
		to := netip.AddrPortFrom(t.origin, madeUpPort)
		learned := make(chan error, 1)
		go func() {
			_, _, err := runDNS(ctx, t.from, dnsLearn, to, first, learnedPerSecond, d+500*time.Millisecond)
			learned <- err
		}()
		time.Sleep(200 * time.Millisecond)
		sum, cpu, err := runDNS(ctx, t.from, dnsLatency, t.to(port), 0, 0, d)
		if learnErr := <-learned; err == nil {
			err = learnErr
		}
		if err == nil && sum.Lost > 0 {
			err = fmt.Errorf("%d of %d questions lost", sum.Lost, sum.Questions)
		}
		if err != nil {
			return sample{}, err
		}
		return sample{Rate: float64(sum.Questions) / sum.Seconds, P50: sum.P50Us, P99: sum.P99Us, client: cpu}, nil
	}
}

// pairFigures connects to a great many names, each as soon as it is answered.
func pairFigures(ctx context.Context, s *stage) ([]figure, error) {
	if s.weir == nil {
		return nil, nil
	}
	n := s.weir.node
	count, first := s.o.effort.pairs, s.dns.next
	s.dns.next += count
	sum, _, err := runDNS(ctx, n.client(), dnsPairs, netip.AddrPortFrom(n.server().addr, madeUpPort), first, count, 0)
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("%d new (name, address) pairs, %d questions lost, %.0f a second", sum.Questions, sum.Lost, float64(sum.Questions)/sum.Seconds)
	if sum.Error != "" {
		note += "; " + sum.Error
	}
	return []figure{{Name: figurePairs, Value: float64(sum.Refused), Note: note}}, nil
}

// namesFigures reads what the proxy keeps in memory for a great many names, and
// how long an answer takes before and after.
func namesFigures(ctx context.Context, s *stage) ([]figure, error) {
	if s.weir == nil {
		return nil, nil
	}
	n := s.weir.node
	ask := func() (dnsSummary, error) {
		sum, _, err := runDNS(ctx, n.client(), dnsLatency, netip.AddrPortFrom(n.server().addr, dnsPort), 0, 0, s.o.effort.duration)
		return sum, err
	}
	before, err := ask()
	if err != nil {
		return nil, err
	}
	empty := rss(s.weir.proxyPids())
	count := s.o.effort.names
	sum, _, err := runDNS(ctx, n.client(), dnsMany, netip.AddrPortFrom(n.server().addr, madeUpPort), 0, count, 0)
	if err != nil {
		return nil, err
	}
	time.Sleep(s.o.effort.rest)
	full := rss(s.weir.proxyPids())
	after, err := ask()
	if err != nil {
		return nil, err
	}
	return []figure{
		{Name: figureNames, Unit: "MB", Value: float64(full) / 1e6,
			Note: fmt.Sprintf("%d names with 3 addresses each, learned at %.0f names a second; %.1f MB before", count, float64(sum.Questions)/sum.Seconds, float64(empty)/1e6)},
		{Name: "an answer with as many names learned, p50", Unit: "us", Value: after.P50Us, Note: fmt.Sprintf("%.1f us before", before.P50Us)},
	}, nil
}

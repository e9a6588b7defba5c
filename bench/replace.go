package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What is asked meanwhile, beside 32 connections for requests and 16 that only the
// kernel judges, all as fast as they go.
const (
	askedUDP = 4000 // questions a second
	askedTCP = 1000
)

// work is what one load did while processes were killed and replaced.
type work struct {
	what   string
	done   int
	failed int
	err    error // it could not go on
}

// replaceFigures kills the agent and replaces the proxy twice, while the client
// asks all that Weir has a part in, and counts what fails.
func replaceFigures(ctx context.Context, s *stage) ([]figure, error) {
	if s.weir == nil {
		return nil, nil
	}
	d := s.o.effort.replace
	loads := s.replaceLoads()
	results := make([]work, len(loads))
	var all sync.WaitGroup
	for i, load := range loads {
		all.Go(func() { results[i] = load(ctx, d) })
	}
	begin := time.Now()
	err := s.weir.disturb(ctx, d/12)
	if took := time.Since(begin); err == nil && took > d {
		err = fmt.Errorf("replace the proxy under load: it took %v, and the load lasted %v", took, d)
	}
	all.Wait()
	if err != nil {
		return nil, err
	}
	failed := 0
	var notes []string
	for _, w := range results {
		note := fmt.Sprintf("%d %s", w.done, w.what)
		if w.err != nil {
			note += fmt.Sprintf(" (%v)", w.err)
			w.failed = max(w.failed, 1)
		}
		if failed += w.failed; w.failed > 0 {
			note += fmt.Sprintf(", %d failed", w.failed)
		}
		notes = append(notes, note)
	}
	return []figure{{Name: figureReplace, Value: float64(failed),
		Note: fmt.Sprintf("in %v: %s", d, strings.Join(notes, "; "))}}, nil
}

// disturb kills the agent and starts it again, and replaces the proxy twice, with
// a pause before each.
func (w *weirAgent) disturb(ctx context.Context, pause time.Duration) error {
	time.Sleep(pause)
	w.agent.kill()
	time.Sleep(time.Second)
	if err := w.startAgent(); err != nil {
		return err
	}
	if out, err := run(ctx, w.node.name, w.binary, "status", "--state", w.state, "--wait", "--timeout", "30s"); err != nil {
		return fmt.Errorf("wait for the next agent: %w: %s", err, out)
	}
	for range 2 {
		time.Sleep(pause)
		if out, err := run(ctx, w.node.name, w.binary, "proxy", "replace", "--state", w.state); err != nil {
			return fmt.Errorf("replace the proxy: %w: %s", err, out)
		}
		for _, pid := range w.pids() {
			if err := raiseSession(pid); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaceLoads are the loads, each of which tells what it did.
func (s *stage) replaceLoads() []func(context.Context, time.Duration) work {
	n := s.weir.node
	server := n.server().addr
	perf := func(what, mode string, rate int) func(context.Context, time.Duration) work {
		return func(ctx context.Context, d time.Duration) (w work) {
			w.what = what
			ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
			defer cancel()
			out, err := run(ctx, n.client().ns, "dnsperf", "-s", server.String(), "-d", s.dns.queries, "-m", mode,
				"-c", "4", "-T", "1", "-q", "50", "-Q", strconv.Itoa(rate), "-l", strconv.Itoa(int(d.Seconds())))
			if err == nil {
				w.done, w.failed, err = countDnsperf(out)
			}
			w.err = err
			return w
		}
	}
	tcp := func(what, mode string, conns int) func(context.Context, time.Duration) work {
		return func(ctx context.Context, d time.Duration) (w work) {
			rate, _, err := tcpLoad(ctx, n.client(), mode, server, conns, d)
			return work{what: what, done: int(rate * d.Seconds()), err: err}
		}
	}
	return []func(context.Context, time.Duration) work{
		perf("questions by UDP", "udp", askedUDP),
		perf("questions by TCP, on 4 connections", "tcp", askedTCP),
		func(ctx context.Context, d time.Duration) (w work) {
			first := s.dns.next
			count := int(d.Seconds()) * 10 * learnedPerSecond // more than there is time for
			s.dns.next += count
			sum, _, err := runDNS(ctx, n.client(), dnsPairs, netip.AddrPortFrom(server, madeUpPort), first, count, d)
			if err == nil && sum.Error != "" {
				err = errors.New(sum.Error)
			}
			return work{"new names asked for and connected to", sum.Questions, sum.Lost + sum.Refused, err}
		},
		func(ctx context.Context, d time.Duration) (w work) {
			ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
			defer cancel()
			w.what = "requests on 32 connections"
			out, err := run(ctx, n.client().ns, "wrk", "-t1", "-c32", fmt.Sprintf("-d%ds", int(d.Seconds())), "--timeout", "5s",
				"-s", s.script, "http://"+netip.AddrPortFrom(server, hundredPort).String()+request(hundredPort, smallItem))
			if err == nil {
				w.done, w.failed, err = countWrk(out)
			}
			w.err = err
			return w
		},
		tcp("exchanges on 16 connections that the kernel judges", modeRR, 16),
		tcp("connections that the kernel judges", modeCRR, 1),
	}
}

// countDnsperf tells how many questions were answered, and how many were not, or
// otherwise than they should be, or cost their connection.
func countDnsperf(out []byte) (done, failed int, err error) {
	text := string(out)
	number := func(name string) int {
		_, rest, ok := strings.Cut(text, name)
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			if n, convErr := strconv.Atoi(fields[0]); convErr == nil {
				return n
			}
		}
		err = errors.Join(err, fmt.Errorf("dnsperf says nothing of %q", name))
		return 0
	}
	sent, good := number("Queries sent:"), number("NOERROR")
	if strings.Contains(text, "Reconnections:") {
		failed = number("Reconnections:")
	}
	return good, failed + sent - good, err
}

// countWrk tells how many requests were answered, and how many with an error or
// not at all.
func countWrk(out []byte) (done, failed int, err error) {
	var w wrkSummary
	if err := json.Unmarshal(out[max(0, strings.LastIndexByte(string(out), '{')):], &w); err != nil {
		return 0, 0, fmt.Errorf("read wrk's summary: %w", err)
	}
	return int(w.Requests) - w.Status, w.Status + w.Failed, nil
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"runtime"
	"time"
)

// target is one thing that is measured: a way from a client pod to a server.
type target struct {
	name string
	from pod
	// to is where the client connects for a rule set's port.
	to func(port int) netip.AddrPort
	// pids are the processes in between whose CPU time counts; nil: none.
	pids func() []int
	// port is asked instead of the cell's where it is not 0.
	port int
	// origin is the server in the pod behind it, and servers its processes.
	origin  netip.Addr
	servers func() []int
}

// sample is one measurement of one target.
type sample struct {
	Rate  float64 `json:"rate"`            // requests, exchanges or megabytes per second
	P50   float64 `json:"p50Us,omitempty"` // microseconds
	P99   float64 `json:"p99Us,omitempty"`
	Proxy float64 `json:"proxyCpuUs"`   // CPU per request, exchange or megabyte: of the processes in between
	Ends  float64 `json:"endsCpuUs"`    // of client and server
	All   float64 `json:"machineCpuUs"` // of the whole machine

	// Others is the part of the machine that other programs used meanwhile.
	Others float64 `json:"others"`

	client time.Duration // CPU time of the client
}

// cell is a load that several targets are put under in turn.
type cell struct {
	name, title string
	unit        string // of Rate
	base        string // target that ratios are taken to
	targets     []string
	port        int
	rounds      int
	duration    time.Duration
	load        func(ctx context.Context, t target, port int, d time.Duration) (sample, error)
}

// series is what one target did in the rounds of a cell.
type series struct {
	Target  string   `json:"target"`
	Samples []sample `json:"samples"`
}

// result is a measured cell.
type result struct {
	Name   string   `json:"name"`
	Title  string   `json:"title"`
	Unit   string   `json:"unit"`
	Base   string   `json:"base"`
	Series []series `json:"series"`
}

// measure runs every target once a round, in an order that moves on by one
// each round, so that no target always follows the same other one.
//
// A measurement that other programs disturbed is made again, while there is
// patience left; if there is none, or after a few tries, the quietest counts.
func (c cell) measure(ctx context.Context, log *slog.Logger, targets map[string]target, a *account) (result, error) {
	r := result{Name: c.name, Title: c.title, Unit: c.unit, Base: c.base}
	var present []target
	for _, name := range c.targets {
		if t, ok := targets[name]; ok {
			present = append(present, t)
			r.Series = append(r.Series, series{Target: name})
		}
	}
	for round := range c.rounds {
		for i := range present {
			k := (i + round) % len(present)
			s, err := c.quiet(ctx, present[k], a)
			if err != nil {
				return r, fmt.Errorf("cell %s, %s: %w", c.name, present[k].name, err)
			}
			r.Series[k].Samples = append(r.Series[k].Samples, s)
			log.Debug("measured", "cell", c.name, "target", present[k].name, "round", round+1, "rate", s.Rate,
				"p50Us", s.P50, "proxyCpuUs", s.Proxy, "machineCpuUs", s.All, "others", s.Others)
		}
	}
	return r, nil
}

// tries is how often a measurement is made at most.
const tries = 6

// quiet measures one target while others rest.
func (c cell) quiet(ctx context.Context, t target, a *account) (sample, error) {
	var best sample
	least := math.Inf(1)
	for range tries {
		if err := a.rest(runtime.NumCPU()); err != nil {
			return best, err
		}
		var s sample
		begin := time.Now()
		share, err := a.share(runtime.NumCPU(), func() (err error) {
			s, err = c.once(ctx, t)
			return err
		})
		if err != nil {
			return best, err
		}
		if share < least {
			best, least = s, share
		}
		if least < disturbed || a.patient <= 0 {
			break
		}
		a.patient -= time.Since(begin)
	}
	if best.Others = least; least >= disturbed {
		a.spoilt++
	}
	return best, nil
}

// once measures one target, with the CPU time used meanwhile.
func (c cell) once(ctx context.Context, t target) (sample, error) {
	var pids []int
	if t.pids != nil {
		pids = t.pids()
	}
	servers := t.servers()
	proxyBefore, serversBefore := cpuOf(pids), cpuOf(servers)
	machineBefore, err := machineBusy()
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	port := c.port
	if t.port != 0 {
		port = t.port
	}
	s, err := c.load(ctx, t, port, c.duration)
	if err != nil {
		return s, err
	}
	seconds := time.Since(begin).Seconds()
	machineAfter, err := machineBusy()
	if err != nil {
		return s, err
	}
	if done := s.Rate * seconds; done > 0 {
		s.Proxy = float64((cpuOf(pids) - proxyBefore).Microseconds()) / done
		s.Ends = float64((cpuOf(servers) - serversBefore + s.client).Microseconds()) / done
		s.All = float64((machineAfter - machineBefore).Microseconds()) / done
	}
	return s, nil
}

// of returns one figure of a target in every round; nil where the cell does
// not have the target.
func (r result) of(target string, figure func(sample) float64) []float64 {
	for _, s := range r.Series {
		if s.Target == target {
			v := make([]float64, len(s.Samples))
			for i, x := range s.Samples {
				v[i] = figure(x)
			}
			return v
		}
	}
	return nil
}

func rate(s sample) float64       { return s.Rate }
func p50(s sample) float64        { return s.P50 }
func p99(s sample) float64        { return s.P99 }
func proxyCPU(s sample) float64   { return s.Proxy }
func endsCPU(s sample) float64    { return s.Ends }
func machineCPU(s sample) float64 { return s.All }

// httpLoad puts wrk's load on a target.
func httpLoad(script string, item, conns int) func(context.Context, target, int, time.Duration) (sample, error) {
	return func(ctx context.Context, t target, port int, d time.Duration) (sample, error) {
		s, err := wrk(ctx, t.from, script, t.to(port), request(port, item), conns, d)
		if err != nil {
			return sample{}, err
		}
		return sample{Rate: s.Requests / s.DurationUs * 1e6, P50: s.P50Us, P99: s.P99Us, client: s.cpu}, nil
	}
}

// exchangeLoad puts the TCP load of tcpload.go on a target.
func exchangeLoad(mode string, conns int) func(context.Context, target, int, time.Duration) (sample, error) {
	return func(ctx context.Context, t target, _ int, d time.Duration) (sample, error) {
		v, cpu, err := tcpLoad(ctx, t.from, mode, t.origin, conns, d)
		return sample{Rate: v, client: cpu}, err
	}
}

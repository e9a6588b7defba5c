package main

import "time"

// Names of targets.
const (
	direct    = "direct"  // no proxy, no policy
	weirL4    = "weir-l4" // Weir's kernel part alone decides
	weirHTTP  = "weir"    // through Weir's proxy, 100 rules
	weirOne   = weirHTTP + one
	weirMany  = weirHTTP + many
	parseOnly = "parse-only" // a tc program that parses and lets pass
	nginx     = "nginx"
	haproxy   = "haproxy"
	envoy     = "envoy"

	// What ends the names of those that are asked where 1 and where 1,000
	// rules hold.
	one  = "-1"
	many = "-1000"
)

// effort says how long a run takes.
type effort struct {
	rounds     int
	duration   time.Duration
	l4Rounds   int // small differences show in many short rounds
	l4Duration time.Duration
	idle       int           // connections
	changes    int           // policy changes that are timed
	repeats    int           // of Go benchmarks
	pairs      int           // names that are connected to
	names      int           // names that are kept
	rest       time.Duration // until a proxy with idle connections is looked at
	replace    time.Duration // of the load while the agent is killed and the proxy replaced
}

func fullEffort() effort {
	return effort{rounds: 5, duration: 3 * time.Second, l4Rounds: 25, l4Duration: 600 * time.Millisecond, idle: 10000, changes: 200,
		repeats: 5, rest: 5 * time.Second, pairs: 100_000, names: 100_000, replace: time.Minute}
}

func quickEffort() effort {
	return effort{rounds: 1, duration: time.Second, l4Rounds: 3, l4Duration: 300 * time.Millisecond, idle: 500, changes: 20,
		repeats: 1, rest: time.Second, pairs: 2000, names: 2000, replace: 20 * time.Second}
}

// cells is everything that is measured by putting targets under load in turn.
func cells(e effort, s *stage) []cell {
	rivals := []string{nginx, haproxy, envoy}
	http := func(name, title string, item, conns, rounds int, targets ...string) cell {
		return cell{name: name, title: title, unit: "req/s", base: direct, targets: targets, port: hundredPort,
			rounds: rounds, duration: e.duration, load: httpLoad(s.script, item, conns)}
	}
	l4 := func(name, title, unit string) cell {
		return cell{name: name, title: title, unit: unit, base: direct,
			targets: []string{direct, parseOnly, weirL4}, rounds: e.l4Rounds, duration: e.l4Duration}
	}
	stream := l4("l4-stream", "TCP, one stream", "MB/s")
	stream.load = exchangeLoad(modeStream, 1)
	rr := l4("l4-rr", "TCP request/response, 1 connection", "per second")
	rr.load = exchangeLoad(modeRR, 1)
	rr16 := l4("l4-rr16", "TCP request/response, 16 connections", "per second")
	rr16.load = exchangeLoad(modeRR, 16)
	crr := l4("l4-crr", "TCP connect/request/close, one at a time", "per second")
	crr.load = exchangeLoad(modeCRR, 1)

	return []cell{
		http("http-32", "HTTP, 32 connections, small, 100 rules", smallItem, 32, e.rounds,
			append([]string{direct, weirL4, weirHTTP}, rivals...)...),
		http("http-1", "HTTP, 1 connection, small, 100 rules", smallItem, 1, e.rounds,
			append([]string{direct, weirL4, weirHTTP}, rivals...)...),
		http("http-rules", "HTTP, 32 connections, small, 1 to 1,000 rules", smallItem, 32, e.rounds,
			direct, weirOne, weirHTTP, weirMany, nginx+many, haproxy+one, haproxy+many),
		http("http-large", "HTTP, 4 connections, 1 MiB, 100 rules", largeItem, 4, e.rounds,
			append([]string{direct, weirHTTP}, rivals...)...),
		stream, rr, rr16, crr,
		{name: "dns", title: "DNS, dnsperf", unit: "queries/s", base: direct, targets: []string{direct, weirHTTP, dnsmasq}, port: dnsPort,
			rounds: e.rounds, duration: e.duration, load: dnsLoad(s)},
		{name: "dns-1", title: "DNS, one question at a time, 1,000 new addresses a second meanwhile", unit: "queries/s", base: direct,
			targets: []string{direct, weirHTTP}, port: dnsPort, rounds: e.rounds, duration: e.duration, load: dnsLatencyLoad(s)},
	}
}

// cellsPerCPU are the cells that are measured again with a worker per CPU.
func cellsPerCPU(e effort, s *stage) []cell {
	var again []cell
	for _, c := range cells(e, s) {
		if c.name == "http-32" || c.name == "http-1" {
			c.name += perCPU
			c.title += ", a worker per CPU"
			again = append(again, c)
		}
	}
	return again
}

// perCPU ends the names of those cells.
const perCPU = "-percpu"

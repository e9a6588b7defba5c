package main

import "math"

// check is one target of the project and whether this run met it.
type check struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Op    string  `json:"op"` // ">=" or "<="
	Limit float64 `json:"limit"`
	Met   bool    `json:"met"`
}

// judge compares what was measured with the targets. What was not measured is
// left out, not counted as met.
func (r *report) judge() {
	add := func(name string, value float64, op string, limit float64) {
		if math.IsNaN(value) {
			return
		}
		met := value >= limit
		if op == "<=" {
			met = value <= limit
		}
		r.Checks = append(r.Checks, check{name, value, op, limit, met})
	}
	// ratio divides one figure of two targets, round by round.
	ratio := func(cell, num, den string, f func(sample) float64) float64 {
		c, ok := r.cell(cell)
		if !ok {
			return math.NaN()
		}
		return pairedRatio(c.of(num, f), c.of(den, f))
	}
	// difference subtracts one figure of two targets, round by round.
	difference := func(cell, a, b string, f func(sample) float64) []float64 {
		c, _ := r.cell(cell)
		x, y := c.of(a, f), c.of(b, f)
		out := make([]float64, min(len(x), len(y)))
		for i := range out {
			out[i] = x[i] - y[i]
		}
		return out
	}
	value := func(name string) float64 {
		for _, f := range r.Figures {
			if f.Name == name {
				return f.Value
			}
		}
		return math.NaN()
	}
	add("L4 policy, TCP stream, of none", ratio("l4-stream", weirL4, direct, rate), ">=", 0.97)
	add("L4 policy, request/response, of none", ratio("l4-rr", weirL4, direct, rate), ">=", 0.97)
	add("L4 policy, request/response, 16 connections, of none", ratio("l4-rr16", weirL4, direct, rate), ">=", 0.97)
	add("L4 policy, connect/request/close, of none", ratio("l4-crr", weirL4, direct, rate), ">=", 0.92)
	add("tc program, established, ns", value(figureEstablished), "<=", 300)
	add("tc program, full, 10,000 policy entries, ns", value(figureFull), "<=", 450)
	add("HTTP, 32 connections, of direct", ratio("http-32", weirHTTP, direct, rate), ">=", 0.40)
	add("HTTP, 32 connections, requests/s of HAProxy's", ratio("http-32", weirHTTP, haproxy, rate), ">=", 1)
	add("HTTP, 32 connections, requests/s of Envoy's", ratio("http-32", weirHTTP, envoy, rate), ">=", 3)
	add("HTTP, CPU per request of HAProxy's (processes)", ratio("http-32", weirHTTP, haproxy, proxyCPU), "<=", 1)
	add("HTTP, CPU per request of HAProxy's (machine)", ratio("http-32", weirHTTP, haproxy, machineCPU), "<=", 1)
	add("HTTP, CPU per request of Envoy's (processes)", ratio("http-32", weirHTTP, envoy, proxyCPU), "<=", 0.4)
	add("HTTP, 1 connection, p50 of HAProxy's", ratio("http-1", weirHTTP, haproxy, p50), "<=", 1.2)
	add("HTTP, 32 connections, a worker per CPU, requests/s of HAProxy's", ratio("http-32"+perCPU, weirHTTP, haproxy, rate), ">=", 1)
	add("HTTP, 32 connections, a worker per CPU, requests/s of Envoy's", ratio("http-32"+perCPU, weirHTTP, envoy, rate), ">=", 3)
	add("HTTP, a worker per CPU, CPU per request of HAProxy's (processes)", ratio("http-32"+perCPU, weirHTTP, haproxy, proxyCPU), "<=", 1)
	add("HTTP, a worker per CPU, CPU per request of Envoy's (processes)", ratio("http-32"+perCPU, weirHTTP, envoy, proxyCPU), "<=", 0.4)
	add("HTTP, 1,000 rules, requests/s of 1 rule's", ratio("http-rules", weirMany, weirOne, rate), ">=", 0.95)
	add("HTTP, 1 MiB bodies, of direct", ratio("http-large", weirHTTP, direct, rate), ">=", 0.5)
	add("DNS, queries/s of direct", ratio("dns", weirHTTP, direct, rate), ">=", 0.45)
	add("DNS, queries/s of dnsmasq's", ratio("dns", weirHTTP, dnsmasq, rate), ">=", 1)
	add("DNS, added latency, p50, us", median(difference("dns-1", weirHTTP, direct, p50)), "<=", 80)
	add("DNS, added latency, p99, us", median(difference("dns-1", weirHTTP, direct, p99)), "<=", 1000)
	add("connections refused after an answer", value(figurePairs), "<=", 0)
	add("100,000 names with 300,000 addresses, proxy RSS, MB", value(figureNames), "<=", 120)
	add(figureReplace, value(figureReplace), "<=", 0)
	add("heap allocations per request", value(figureAllocs), "<=", 0)
	add("10,000 idle connections, proxy RSS, MB", value(figureIdle), "<=", 120)
	add("policy change until enforced, p99, ms", value(figureChange), "<=", 100)
}

// Names of figures that have a target.
const (
	figureEstablished = "tc program, established"
	figureFull        = "tc program, full"
	figureAllocs      = "allocations per request"
	figureIdle        = "idle connections: weir RSS"
	figurePairs       = "names connected to as soon as they are answered: refused"
	figureNames       = "names learned: weir RSS"
	figureReplace     = "agent killed, proxy replaced twice, under load: failed"
	figureChange      = "policy change until enforced, p99"
)

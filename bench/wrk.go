package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// wrkSummary is the line configs/summary.lua prints.
type wrkSummary struct {
	Requests   float64 `json:"requests"`
	Bytes      float64 `json:"bytes"`
	DurationUs float64 `json:"durationUs"`
	P50Us      float64 `json:"p50Us"`
	P99Us      float64 `json:"p99Us"`
	Status     int     `json:"status"` // answers that were not 2xx or 3xx
	Failed     int     `json:"failed"` // connections that failed

	cpu time.Duration // of wrk itself
}

// parseWrk finds the summary in wrk's output and refuses a run that did not
// measure what it should: a proxy that answers 403 is fast.
func parseWrk(out []byte) (wrkSummary, error) {
	var s wrkSummary
	i := bytes.LastIndexByte(out, '{')
	if i < 0 {
		return s, fmt.Errorf("read wrk's summary: none in %q", out)
	}
	if err := json.NewDecoder(bytes.NewReader(out[i:])).Decode(&s); err != nil {
		return s, fmt.Errorf("read wrk's summary: %w", err)
	}
	switch {
	case s.Status > 0 || s.Failed > 0:
		return s, fmt.Errorf("load by wrk: %d answers were errors, %d connections failed", s.Status, s.Failed)
	case s.Requests == 0 || s.DurationUs == 0:
		return s, fmt.Errorf("load by wrk: no request was answered")
	}
	return s, nil
}

// wrk loads an HTTP server from a pod with one thread.
func wrk(ctx context.Context, from pod, script string, to netip.AddrPort, path string, conns int, d time.Duration) (wrkSummary, error) {
	ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
	defer cancel()
	seconds := max(1, int(d.Seconds()+0.5))
	out, cpu, err := runTimed(ctx, from.ns, "wrk", "-t1", fmt.Sprintf("-c%d", conns), fmt.Sprintf("-d%ds", seconds),
		"--timeout", "5s", "-s", script, "http://"+to.String()+path)
	if err != nil {
		return wrkSummary{}, err
	}
	s, err := parseWrk(out)
	s.cpu = cpu
	return s, err
}

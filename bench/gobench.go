package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math"
	"os/exec"
	"strconv"
	"strings"
)

// goBenchmark is one line of `go test -bench`: name and value by unit.
type goBenchmark struct {
	name   string // without the CPU suffix
	values map[string]float64
}

// parseGoBench reads the result lines of `go test -bench`.
func parseGoBench(out []byte) []goBenchmark {
	var all []goBenchmark
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name, suffix, found := cutLast(f[0], "-")
		if _, err := strconv.Atoi(suffix); !found || err != nil {
			name = f[0]
		}
		b := goBenchmark{name: strings.TrimPrefix(name, "Benchmark"), values: map[string]float64{}}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				b.values[f[i+1]] = v
			}
		}
		all = append(all, b)
	}
	return all
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// goBench runs a package's benchmarks count times.
func goBench(ctx context.Context, pattern, pkg string, count int) ([]goBenchmark, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", pattern, "-benchtime", "100ms", "-count", strconv.Itoa(count), pkg)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return parseGoBench(out), nil
}

// collect returns one unit's values of a benchmark over its repetitions.
func collect(all []goBenchmark, name, unit string) []float64 {
	var v []float64
	for _, b := range all {
		if value, ok := b.values[unit]; ok && b.name == name {
			v = append(v, value)
		}
	}
	return v
}

// programFigures are what C programs cost per packet, by PROG_RUN: of a flow
// that is established and of one that is judged, the worse of the two
// programs and of the two families.
func programFigures(ctx context.Context, s *stage) ([]figure, error) {
	// Of the repetitions within one, the benchmark reports the quickest.
	const unit = "best-ns/op"
	all, err := goBench(ctx, "Programs/(nothing|established|full)$", "./bpf", s.o.effort.repeats)
	if err != nil {
		return nil, err
	}
	worst := func(kind string) (float64, error) {
		result := math.NaN()
		for _, family := range []string{"IPv4", "IPv6"} {
			for _, program := range []string{"from_pod", "to_pod"} {
				v := median(collect(all, fmt.Sprintf("Programs/%s_%s_%s", family, program, kind), unit))
				if math.IsNaN(v) {
					return v, fmt.Errorf("read the programs' cost: no %s of %s, %s", unit, program, kind)
				}
				if math.IsNaN(result) || v > result {
					result = v
				}
			}
		}
		return result, nil
	}
	established, err := worst("established")
	if err != nil {
		return nil, err
	}
	full, err := worst("full")
	if err != nil {
		return nil, err
	}
	return []figure{
		{Name: figureEstablished, Value: established, Unit: "ns", Note: "10,000 policy entries; the worse of from_pod and to_pod, IPv4 and IPv6"},
		{Name: figureFull, Value: full, Unit: "ns", Note: "likewise; every table is asked"},
		{Name: "tc program, nothing", Value: median(collect(all, "Programs/IPv4_nothing", unit)), Unit: "ns",
			Note: "what of the above is the way of measuring: a packet that is let pass at once"},
	}, nil
}

// allocationFigures runs the test that counts what a request allocates. It
// fails where that is not 0.
func allocationFigures(ctx context.Context, _ *stage) ([]figure, error) {
	const test = "TestAllocations"
	out, err := exec.CommandContext(ctx, "go", "test", "-count", "1", "-v", "-run", "^"+test+"$", "./proxy/http").CombinedOutput()
	if !bytes.Contains(out, []byte("--- PASS: "+test)) {
		return nil, fmt.Errorf("count allocations: %w: %s", err, out)
	}
	return []figure{{Name: figureAllocs, Unit: "", Note: "proxy/http " + test}}, nil
}

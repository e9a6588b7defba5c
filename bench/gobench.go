package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
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

// goBench runs a package's benchmarks several times.
func goBench(ctx context.Context, pattern, pkg string) ([]goBenchmark, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", pattern, "-benchmem", "-benchtime", "300ms", "-count", "5", pkg)
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

func programFigures(ctx context.Context, s *stage) ([]figure, error)    { return nil, nil }
func allocationFigures(ctx context.Context, s *stage) ([]figure, error) { return nil, nil }

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weirnet/weir/bench/record"
)

// report is all that one run found.
type report struct {
	record.Run
	Versions map[string]string `json:"versions"`
	Workers  int               `json:"workers"`
	Rounds   int               `json:"rounds"`
	Seconds  float64           `json:"seconds"` // of one measurement
	// Disturbed is how many measurements count though others used the machine.
	Disturbed int      `json:"disturbed"`
	Cells     []result `json:"cells"`
	Figures   []figure `json:"figures,omitempty"`
	Checks    []check  `json:"checks"`
}

// figure is one number that is not a load in turns.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Note  string  `json:"note,omitempty"`
}

func newReport(ctx context.Context, o options) *report {
	r := &report{
		Run:     record.Here(firstLine(ctx, "git", "describe", "--always", "--dirty")),
		Workers: o.workers, Rounds: o.effort.rounds, Seconds: o.effort.duration.Seconds(), Versions: map[string]string{},
	}
	r.Versions["go"] = firstLine(ctx, "go", "version")
	r.Versions["wrk"] = firstLine(ctx, "wrk", "-v")
	r.Versions["nginx"] = firstLine(ctx, "nginx", "-v")
	if !slices.Contains(o.without, haproxy) {
		r.Versions["haproxy"] = firstLine(ctx, "haproxy", "-v")
	}
	if !slices.Contains(o.without, envoy) {
		r.Versions["envoy"] = envoyPackage
	}
	return r
}

// firstLine is the first line a command prints; empty where it does not run.
func firstLine(ctx context.Context, name string, args ...string) string {
	out, _ := exec.CommandContext(ctx, name, args...).CombinedOutput() // some exit with 1 after their version
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.TrimSpace(line)
}

// cell returns a measured cell by name.
func (r *report) cell(name string) (result, bool) {
	for _, c := range r.Cells {
		if c.Name == name {
			return c, true
		}
	}
	return result{}, false
}

// print writes the tables people read; they are Markdown as well.
func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s, commit %s, kernel %s, %d x %s\n", r.Date.Format(time.RFC3339), r.Commit, r.Kernel, r.CPUs, r.CPU)
	fmt.Fprintf(w, "%d rounds of %gs, medians; %d worker per proxy where nothing else is said; %s; %s; %s\n", r.Rounds, r.Seconds, r.Workers,
		r.Versions["nginx"], r.Versions["haproxy"], r.Versions["envoy"])
	if r.Disturbed > 0 {
		fmt.Fprintf(w, "%d measurements were disturbed by other programs.\n", r.Disturbed)
	}
	for _, c := range r.Cells {
		fmt.Fprintf(w, "\n### %s\n\n", c.Title)
		t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
		fmt.Fprintf(t, "| way\t| %s\t| of %s\t| spread\t| p50 us\t| p99 us\t| proxy CPU us\t| ends CPU us\t| machine CPU us\t|\n", c.Unit, c.Base)
		fmt.Fprint(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|\n")
		for _, s := range c.Series {
			v := c.of(s.Target, rate)
			fmt.Fprintf(t, "| %s\t| %s\t| %.3f\t| %.1f %%\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", s.Target,
				number(median(v)), pairedRatio(v, c.of(c.Base, rate)), 100*spread(v),
				number(median(c.of(s.Target, p50))), number(median(c.of(s.Target, p99))),
				number(median(c.of(s.Target, proxyCPU))), number(median(c.of(s.Target, endsCPU))),
				number(median(c.of(s.Target, machineCPU))))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(r.Figures) > 0 {
		fmt.Fprint(w, "\n### Single figures\n\n")
		t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
		fmt.Fprint(t, "| what\t| value\t| note\t|\n|---\t|---\t|---\t|\n")
		for _, f := range r.Figures {
			fmt.Fprintf(t, "| %s\t| %s %s\t| %s\t|\n", f.Name, number(f.Value), f.Unit, f.Note)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprint(w, "\n### Targets\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(t, "| what\t| measured\t| target\t|\t|\n|---\t|---\t|---\t|---\t|\n")
	for _, c := range r.Checks {
		verdict := "met"
		if !c.Met {
			verdict = "**missed**"
		}
		fmt.Fprintf(t, "| %s\t| %s\t| %s %s\t| %s\t|\n", c.Name, number(c.Value), c.Op, number(c.Limit), verdict)
	}
	return t.Flush()
}

// number formats with as many digits as mean something.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case v == 0:
		return "0"
	case math.Abs(v) >= 1000:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// write keeps the run under outDir and prints it.
func (r *report) write(o options) error {
	return r.Keep(o.outDir, "", r, r.print, o.json)
}

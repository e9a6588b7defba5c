package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weirnet/weir/bench/record"
	"github.com/weirnet/weir/test/apiserver"
)

// report is all that one run found.
type report struct {
	record.Run
	Load     string            `json:"load"` // averages of the machine's load before the run
	Versions map[string]string `json:"versions"`
	Size     size              `json:"size"`
	Figures  []figure          `json:"figures"`
}

// figure is one number, with the limit that it is to keep, if there is one.
type figure struct {
	Name  string   `json:"name"`
	Value float64  `json:"value"`
	Unit  string   `json:"unit"`
	Note  string   `json:"note,omitempty"`
	Op    string   `json:"op,omitempty"` // ">=" or "<="
	Limit *float64 `json:"limit,omitempty"`
	Met   *bool    `json:"met,omitempty"`
}

func newReport(ctx context.Context, s size) *report {
	load, _ := os.ReadFile("/proc/loadavg")
	r := &report{
		Run: record.Here(firstLine(ctx, "git", "describe", "--always", "--dirty")), Size: s,
		Load: strings.Join(strings.Fields(string(load))[:min(3, len(strings.Fields(string(load))))], " "),
	}
	r.Versions = map[string]string{"kubernetes": apiserver.Version, "go": firstLine(ctx, "go", "version")}
	if etcd, err := apiserver.Binary("etcd"); err == nil {
		r.Versions["etcd"] = strings.TrimPrefix(firstLine(ctx, etcd, "--version"), "etcd Version: ")
	}
	return r
}

// firstLine is the first line a command prints; empty where it does not run.
func firstLine(ctx context.Context, name string, args ...string) string {
	out, _ := exec.CommandContext(ctx, name, args...).Output() // then there is none
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// add states a figure that nothing is demanded of.
func (r *report) add(name string, value float64, unit, note string, args ...any) {
	r.Figures = append(r.Figures, figure{Name: name, Value: value, Unit: unit, Note: fmt.Sprintf(note, args...)})
}

// most states one that may be limit at most, and least one that may be no less.
func (r *report) most(limit float64, name string, value float64, unit, note string, args ...any) {
	r.judge("<=", limit, value <= limit, name, value, unit, note, args...)
}

func (r *report) least(limit float64, name string, value float64, unit, note string, args ...any) {
	r.judge(">=", limit, value >= limit, name, value, unit, note, args...)
}

func (r *report) judge(op string, limit float64, met bool, name string, value float64, unit, note string, args ...any) {
	r.Figures = append(r.Figures, figure{name, value, unit, fmt.Sprintf(note, args...), op, &limit, &met})
}

// print writes the table people read; it is Markdown as well.
func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s, commit %s, kernel %s, %d x %s, load before %s\n", r.Date.Format(time.RFC3339), r.Commit, r.Kernel, r.CPUs, r.CPU, r.Load)
	fmt.Fprintf(w, "Kubernetes %s, etcd %s; %d pods, %d of them of this node, on %d nodes in %d namespaces, %d policies\n\n",
		r.Versions["kubernetes"], r.Versions["etcd"], r.Size.Pods, r.Size.Own, r.Size.Nodes, r.Size.Namespaces, r.Size.Policies)
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(t, "| what\t| measured\t| target\t| note\t|\n|---\t|---\t|---\t|---\t|\n")
	for _, f := range r.Figures {
		target := ""
		if f.Limit != nil {
			target = fmt.Sprintf("%s %s: met", f.Op, number(*f.Limit))
			if !*f.Met {
				target = fmt.Sprintf("%s %s: **missed**", f.Op, number(*f.Limit))
			}
		}
		fmt.Fprintf(t, "| %s\t| %s %s\t| %s\t| %s\t|\n", f.Name, number(f.Value), f.Unit, target, f.Note)
	}
	return t.Flush()
}

// number formats with as many digits as mean something.
func number(v float64) string {
	switch {
	case v == math.Trunc(v) || math.Abs(v) >= 1000:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// write keeps the report below dir, and prints it.
func (r *report) write(dir string, asJSON bool) error {
	return r.Keep(dir, "-kube", r, r.print, asJSON)
}

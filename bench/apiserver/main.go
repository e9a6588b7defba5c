package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/deploy/crds"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

// options of a run.
type options struct {
	binary, outDir string
	changes, rate  int
	churn          time.Duration
	env            []string
	json           bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := mainErr(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func mainErr(ctx context.Context, args []string) error {
	var s size
	var o options
	f := flag.NewFlagSet("bench-kube", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), "What an agent costs in a large cluster, and how fast it is there: see bench/README.md.\n\n")
		f.PrintDefaults()
	}
	f.IntVar(&s.Pods, "pods", 10_000, "pods, with status")
	f.IntVar(&s.Nodes, "nodes", 501, "nodes; one of them is the agent's")
	f.IntVar(&s.Namespaces, "namespaces", 1000, "namespaces")
	f.IntVar(&s.Policies, "policies", 1000, "policies, half of each kind")
	f.IntVar(&s.Own, "own", 100, "pods of the agent's node")
	f.IntVar(&o.changes, "changes", 300, "changes of a policy to time")
	f.DurationVar(&o.churn, "churn", 20*time.Second, "how long pods come and go")
	f.IntVar(&o.rate, "rate", 100, "pods that come per second, and as many that go")
	quick := f.Bool("quick", false, "a smoke run of half a minute with a tenth of all: the figures mean little")
	format := f.String("o", "text", "text or json")
	f.StringVar(&o.outDir, "out", "bench/out", "where results and logs are kept")
	f.StringVar(&o.binary, "weir", "bin/weir", "the binary")
	env := f.String("env", "", "settings of the agent's environment, by comma")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *quick {
		s = size{Pods: s.Pods / 10, Nodes: 1 + s.Nodes/10, Namespaces: s.Namespaces / 10, Policies: s.Policies / 10, Own: s.Own / 10}
		o.changes, o.churn = o.changes/10, o.churn/5
	}
	switch {
	case *format != "text" && *format != "json":
		return fmt.Errorf("-o %s: text or json", *format)
	case s.Nodes < 2 || s.Namespaces < 1 || s.Policies < 1 || s.Own < 1 || s.Own > s.Pods || o.changes < 1 || o.rate < 1:
		return fmt.Errorf("too little to measure: %+v", s)
	case os.Geteuid() != 0:
		return errors.New("eBPF needs root")
	}
	o.json = *format == "json"
	if *env != "" {
		o.env = strings.Split(*env, ",")
	}
	r, err := run(ctx, s, o)
	if err != nil {
		return err
	}
	return r.write(o.outDir, o.json)
}

func run(ctx context.Context, s size, o options) (_ *report, err error) {
	start := time.Now()
	b := &bench{size: s, options: o, report: newReport(ctx, s), say: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}}
	dir, err := os.MkdirTemp("", "weir-apiserver-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b.say("starting an API server")
	if b.server, err = apiserver.Start(dir); err != nil {
		return nil, err
	}
	defer b.server.Close()
	b.write, err = newWriter(&rest.Config{Host: b.server.URL, BearerToken: b.server.Token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		return nil, err
	}
	if err := define(ctx, b.write); err != nil {
		return nil, err
	}
	if err := b.write.load(ctx, s, b.say); err != nil {
		return nil, err
	}
	kubeconfig, err := b.server.Kubeconfig()
	if err != nil {
		return nil, err
	}
	watches, err := b.watches()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.outDir, 0o755); err != nil {
		return nil, err
	}
	b.say("starting the agent")
	began := time.Now()
	b.agent, err = startAgent(o.binary, fmt.Sprintf("bench-api-%d", os.Getpid()), kubeconfig, filepath.Join(o.outDir, "agent-kube.log"), o.env)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.agent.stop()) }()
	if err := b.sync(ctx, began, watches); err != nil {
		return nil, err
	}
	if err := b.changes(ctx); err != nil {
		return nil, err
	}
	if err := b.churn(ctx); err != nil {
		return nil, err
	}
	b.end()
	b.say("done")
	return b.report, nil
}

// define puts the definitions of policies, and waits until they are served.
func define(ctx context.Context, w *writer) error {
	docs, errs := api.Documents("", crds.Definitions())
	if len(errs) > 0 {
		return errs[0]
	}
	for i := range docs {
		text, err := docs[i].JSON()
		if err != nil {
			return err
		}
		if err := w.do(ctx, http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", rawJSON(text)); err != nil {
			return err
		}
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := w.do(ctx, http.MethodGet, "/apis/cilium.io/v2/ciliumnetworkpolicies?limit=1", nil)
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
	}
}

type rawJSON []byte

func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

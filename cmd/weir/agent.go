package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/endpoint"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/kube"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/redirect"
)

const agentLong = `Agent enforces the policies on the pods of this node: it reads objects, computes
what each pod may do, and writes that into the kernel, where it stays in force
when the agent stops or dies. It starts the proxy for L7 rules where none runs.

Objects are those of the API server, or Kubernetes YAML or JSON below a directory;
both are followed: pods (with status.podIP), namespaces, nodes, services, endpoint
slices and policies. Pods of this node are those with its name in spec.nodeName;
their interfaces are found by their addresses. While the API server is away,
everything stays in force as it was.

All it owns on this machine hangs on the name of its state: the directory
/run/weir/NAME with the sockets and, unless --pins puts them elsewhere, the pinned
eBPF maps and programs, and the interfaces of the proxy. One agent has a state at a time. weir uninstall removes
all of it.`

// agentOptions are the agent's flags.
type agentOptions struct {
	state       state
	pins        pinsRoot
	standby     bool
	ownSocket   string
	proxy       string
	taint       string // of the node, until it is ready
	objects     string
	kubeconfig  string
	node        string
	metricsAddr string
	logFormat   string
	logLevel    string
	keepFlows   int
	proxyDrain  time.Duration
	clsact      bool
	cgroup      string
	dns         dnsOptions
	host        hostOptions
}

// newAgentCommand is `weir agent`.
func newAgentCommand() *cobra.Command {
	var o agentOptions
	cmd := &cobra.Command{
		Use:   "agent [--objects DIR | --kubeconfig FILE]",
		Short: "Enforce policies on the pods of this node",
		Long:  agentLong,
		Example: `  weir agent --objects /etc/weir/objects --node-name node-1
  weir agent --kubeconfig /etc/weir/kubeconfig`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if err := enterHostMounts(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return o.run(ctx)
		},
	}
	f := cmd.Flags()
	stateFlag(cmd, &o.state)
	pinsFlag(cmd, &o.pins)
	f.BoolVar(&o.standby, "standby", false, "where another agent has the state, read all objects and wait until that one ends")
	f.StringVar(&o.ownSocket, "own-socket", "", "answer on this unix socket `file` as well, also while standing by: for probes of this very process")
	f.StringVar(&o.proxy, "proxy", proxyStart, "who starts proxies: start (this agent, where none runs), or external (others, as a container beside it)")
	f.StringVar(&o.taint, "startup-taint", "", "take taints with this `key` off the node once everything is enforced")
	f.StringVar(&o.objects, "objects", "", "`directory` of objects, instead of an API server's")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says how to connect to the API server (default: as the service account of the pod this runs in)")
	f.StringVar(&o.node, "node-name", "", "name of this node in the objects (default: the host's name)")
	f.StringVar(&o.metricsAddr, "metrics-addr", "127.0.0.1:9964", "serve /metrics and /healthz here; empty: on the socket only")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.IntVar(&o.keepFlows, "keep-flows", 16384, "how many of the latest flow records are kept")
	f.DurationVar(&o.proxyDrain, "proxy-drain", time.Hour, "how long a proxy that was replaced may go on with what it is in the middle of")
	f.BoolVar(&o.clsact, "clsact", false, "attach programs as clsact filters also where the kernel has tcx (tcx runs before filters of others)")
	f.StringVar(&o.cgroup, "cgroup", "auto", cgroupUsage)
	o.host.addFlags(cmd)
	o.dns.addFlags(cmd)
	return cmd
}

func (o *agentOptions) check() error {
	if err := o.checkSource(); err != nil {
		return err
	}
	if o.node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the node's name: %w", err)
		}
		o.node = name
	}
	return errors.Join(o.state.check(), o.pins.check(), oneOf("proxy", o.proxy, proxyStart, proxyExternal), oneOf("log format", o.logFormat, "text", "json"), o.dns.check(), o.host.check())
}

func (o *agentOptions) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("log level %q: must be debug, info, warn or error", o.logLevel)
	}
	h := &slog.HandlerOptions{Level: level}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, h)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, h)), nil
}

// enforce is the agent that has the state: what it owns, in the order of what
// needs what.
func (o *agentOptions) enforce(ctx context.Context, s *standby, log *slog.Logger) error {
	tell, err := o.teller(log)
	if err != nil {
		return err
	}
	source := tell.noted(s.source)
	if cluster, ok := s.source.(*kube.Cluster); ok {
		cluster.Interrupted(tell.definitions.Ask)
	}
	build, err := redirect.BuildOf("/proc/self/exe")
	if err != nil {
		return err
	}

	// The kernel's side, as a predecessor left it.
	if err := o.pins.mount(o.state); err != nil {
		return err
	}
	datapath, err := bpf.Load(bpf.Options{Pins: o.pins.dir(o.state), ForceClsact: o.clsact, Logger: log})
	if err != nil {
		return err
	}
	defer func() {
		if err := datapath.Close(); err != nil {
			log.Warn("letting go of the kernel's tables", "error", err)
		}
	}()

	services, err := o.services(datapath, log)
	if err != nil {
		return err
	}
	defer services.close(log)

	// What was seen.
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	ring, counters := flow.NewRing(o.keepFlows), flow.NewMetrics(registry)
	readersLost := new(atomic.Uint64)
	kernelCounts := func() (flow.KernelCounts, error) { return endpoint.KernelCounts(datapath) }
	registry.MustRegister(flow.NewKernelCollector(kernelCounts, readersLost))
	publish := func(r *flow.Record) {
		counters.Observe(r)
		ring.Publish(r)
	}

	// Objects in, tables out; rule sets and records from and to the proxy.
	veths, err := endpoint.OpenVeths()
	if err != nil {
		return err
	}
	defer veths.Close()
	inhabitants, err := endpoint.OpenInhabitants(log)
	if err != nil {
		return err
	}
	defer inhabitants.Close()
	cut := newCutConnections()
	var manager *endpoint.Manager
	proxies := redirect.NewManager(redirect.Options{
		State: string(o.state), RunDir: o.state.dir(), Datapath: datapath, Log: log,
		Build: build, Drain: o.proxyDrain, External: o.proxy == proxyExternal,
		Record: func(r *flow.Record, rule uint32) {
			manager.Complete(r, rule)
			publish(r)
		},
		Cut:      func(connections uint64) { cut.Add(float64(connections)) },
		DNS:      o.dns.settings(),
		NameSets: func(sets map[string]*policy.NameSet) { manager.NameSets(sets) },
	})
	manager, err = endpoint.New(endpoint.Options{
		Node: o.node, Datapath: datapath, RuleSets: proxies, MTU: proxies.SetMTU, Veths: veths, Inhabitants: inhabitants,
		Names: proxies, Resolvers: o.dns.resolvers, Services: services.Services,
		BeforeActivate: func() { proxies.BeforeActivate(ctx) },
		Failsafe:       o.host.passes, HostDevices: o.host.pattern,
		Complete: func() bool { return source.Report().Complete },
		Log:      log, Metrics: endpoint.NewMetrics(registry),
	})
	if err != nil {
		return err
	}
	watch := newProxyWatch(proxies)
	services.pods = func() []endpoint.EndpointStatus { return manager.Status().Endpoints }
	registry.MustRegister(manager.Collector(), source.Collector(), services.Collector(), watch, cut)
	if err := endpoint.RegisterCapacities(registry, datapath); err != nil {
		return err
	}

	// Who asks.
	server := &agentServer{
		agent: s.agent, source: source, manager: manager, kernel: kernelCounts, proxy: watch.status,
		ring: ring, lost: readersLost, registry: registry, log: log,
		names: proxies.ListNames, podAt: manager.PodAt, services: services.Status,
	}
	if server.port, err = o.listenPort(s.port); err != nil {
		// A busy port must not keep policy from being enforced.
		log.Error("metrics are on the socket only", "error", err)
	}
	socket, err := listenUnix(o.state.socket())
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(o.state.socket()) }() // the next agent removes it as well

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return veths.Run(ctx) })
	group.Go(func() error { return inhabitants.Run(ctx) })
	group.Go(func() error { return proxies.Run(ctx) })
	group.Go(func() error { return manager.Run(ctx) })
	group.Go(func() error { return services.Run(ctx) })
	group.Go(func() error { return manager.Records(ctx, datapath, publish) })
	group.Go(func() error { return serve(ctx, socket, server.private(), true, log) })
	if server.port != nil {
		// A connection per scrape: one that idles would be lost with this process.
		group.Go(func() error { return serve(ctx, server.port, server.public(), false, log) })
	}
	group.Go(func() error { return tell.run(ctx) })
	group.Go(func() error { return o.untaint(ctx, func() bool { return server.status().Ready }, log) })
	if cluster, ok := s.source.(*kube.Cluster); ok {
		cluster.Continue(filepath.Join(o.state.dir(), "kinds"), manager.Inherited())
	}
	s.hand(server.private(), tell.after(manager))
	log.Info("agent started", "node", o.node, "state", string(o.state), "objects", source.Report().Path, "version", version)
	err = group.Wait()
	log.Info("agent stopped; everything stays enforced", "error", err)
	return err
}

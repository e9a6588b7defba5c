package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// stage is everything that stands while cells are measured: three nodes of one
// shape with the same servers in their pods, so that going from one target to
// the next only means asking another address. On the first nothing is
// attached, and the rivals run in its own namespace, between the pods. On the
// second a tc program parses every packet. On the third runs Weir.
type stage struct {
	log     *slog.Logger
	o       options
	workers int // of each proxy
	dir     string
	script  string // for wrk
	files   int    // descriptors a process may have
	targets map[string]target
	plain   *node
	weir    *weirAgent
	parse   []link.Link
	nodes   []*node
	dns     dnsStage
	procs   []*process
}

// nodePods is how many pods each node has: the client, the server, and those
// that the policy changes are about where Weir runs. Without Weir they are there
// as well, for devices and routes have a price of their own.
const nodePods = 102

func newStage(ctx context.Context, log *slog.Logger, o options, workers int) (*stage, error) {
	s := &stage{log: log, o: o, workers: workers, targets: map[string]target{}}
	removeLeftovers()
	dir, err := os.MkdirTemp("", "weir-bench-")
	if err != nil {
		return s, err
	}
	s.dir = dir
	if err := os.Chmod(dir, 0o755); err != nil { // the servers' workers are not root
		return s, err
	}
	if s.script, err = writeConfig(dir, "summary.lua", "summary.lua", configValues{}); err != nil {
		return s, err
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return s, fmt.Errorf("read the limit of descriptors: %w", err)
	}
	s.files = int(min(lim.Max, 1<<20))

	if err := s.addPlain(ctx); err != nil {
		return s, err
	}
	if err := s.addParse(); err != nil {
		return s, err
	}
	if !slices.Contains(o.without, "weir") {
		if err := s.addWeir(ctx); err != nil {
			return s, err
		}
	}
	return s, nil
}

// addNode makes a node with its servers.
func (s *stage) addNode(name string, subnet int) (*node, error) {
	name = fmt.Sprintf("%s%d-%s", namePrefix, os.Getpid(), name)
	n, err := newNode(name, subnet, nodePods)
	s.nodes = append(s.nodes, n)
	if err != nil {
		return n, fmt.Errorf("make node %s: %w", name, err)
	}
	starts := []func() (*process, error){
		func() (*process, error) { return startOrigin(n, s.dir, s.files) },
		func() (*process, error) { return startTCPServer(n, s.dir, modeRR) },
		func() (*process, error) { return startTCPServer(n, s.dir, modeCRR) },
		func() (*process, error) { return startTCPServer(n, s.dir, modeStream) },
	}
	for _, f := range starts {
		p, err := s.started(f())
		if err != nil {
			return n, err
		}
		n.servers = append(n.servers, p)
	}
	return n, s.addDNS(n)
}

func (s *stage) started(p *process, err error) (*process, error) {
	if err == nil {
		s.procs = append(s.procs, p)
	}
	return p, err
}

// addTarget checks that the way does what its name says and makes it known.
func (s *stage) addTarget(ctx context.Context, t target, port int, enforced bool) error {
	if err := checkVerdicts(ctx, t.from, t.to(port), port, enforced); err != nil {
		return fmt.Errorf("target %s: %w", t.name, err)
	}
	s.targets[t.name] = t
	return nil
}

// addPlain makes the node without Weir, and the rivals on it.
func (s *stage) addPlain(ctx context.Context) error {
	n, err := s.addNode("plain", 1)
	if err != nil {
		return err
	}
	s.plain = n
	at := func(addr netip.Addr, offset int) func(int) netip.AddrPort {
		return func(port int) netip.AddrPort { return netip.AddrPortFrom(addr, uint16(port+offset)) }
	}
	server := n.server().addr
	base := target{name: direct, from: n.client(), to: at(server, 0), origin: server, servers: n.serverPids}
	if err := s.addTarget(ctx, base, hundredPort, false); err != nil {
		return err
	}
	if !slices.Contains(s.o.without, dnsmasq) {
		p, err := s.addDnsmasq(n)
		if err != nil {
			return err
		}
		s.targets[dnsmasq] = target{name: dnsmasq, from: n.client(), to: at(n.addr, dnsmasqPort-dnsPort), origin: server, servers: n.serverPids, pids: p.tree}
	}
	envoyPath := s.o.envoy
	if envoyPath == "" && !slices.Contains(s.o.without, envoy) {
		if envoyPath, err = fetchEnvoy(ctx, s.o.cache); err != nil {
			return err
		}
	}
	for i, r := range rivals(envoyPath) {
		if slices.Contains(s.o.without, r.name) {
			continue
		}
		offset := 10000 * (i + 1)
		p, err := s.started(startRival(r, n, s.dir, s.workers, s.files, offset))
		if err != nil {
			return err
		}
		t := target{name: r.name, from: n.client(), to: at(n.addr, offset), origin: server, servers: n.serverPids, pids: p.tree}
		if err := s.addTarget(ctx, t, hundredPort, true); err != nil {
			return fmt.Errorf("%w\n%s", err, p.tail())
		}
		if err := s.addRuleTargets(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// addRuleTargets makes NAME-1 and NAME-1000 known: the same way, asked where 1
// and where 1,000 rules hold.
func (s *stage) addRuleTargets(ctx context.Context, t target) error {
	for suffix, port := range map[string]int{one: oneRulePort, many: thousandPort} {
		u := t
		u.name += suffix
		u.port = port
		if err := s.addTarget(ctx, u, port, true); err != nil {
			return err
		}
	}
	return nil
}

// addParse makes the node whose packets are parsed and nothing else.
func (s *stage) addParse() error {
	n, err := s.addNode("parse", 2)
	if err != nil {
		return err
	}
	if s.parse, err = attachParser(n); err != nil {
		return err
	}
	server := n.server().addr
	s.targets[parseOnly] = target{name: parseOnly, from: n.client(), origin: server, servers: n.serverPids,
		to: func(port int) netip.AddrPort { return netip.AddrPortFrom(server, uint16(port)) }}
	return nil
}

// addWeir makes the node with Weir on it.
func (s *stage) addWeir(ctx context.Context) error {
	n, err := s.addNode("weir", 3)
	if err != nil {
		return err
	}
	if s.weir, err = startWeir(ctx, s, n); err != nil {
		return err
	}
	server := n.server().addr
	t := target{name: weirHTTP, from: n.client(), origin: server, servers: n.serverPids, pids: s.weir.pids,
		to: func(port int) netip.AddrPort { return netip.AddrPortFrom(server, uint16(port)) }}
	if err := s.addTarget(ctx, t, hundredPort, true); err != nil {
		return fmt.Errorf("%w\n%s", err, s.weir.tail())
	}
	if err := s.addRuleTargets(ctx, t); err != nil {
		return err
	}
	t.name, t.port = weirL4, l4Port
	return s.addTarget(ctx, t, l4Port, false)
}

// close takes everything down again.
func (s *stage) close() {
	if s.weir != nil {
		if err := s.weir.close(); err != nil {
			s.log.Error("take Weir down", "error", err)
		}
	}
	for _, l := range s.parse {
		_ = l.Close()
	}
	for _, p := range slices.Backward(s.procs) {
		p.stop()
	}
	for _, n := range s.nodes {
		n.remove()
	}
	if s.dir != "" {
		if err := s.keepLogs(); err != nil {
			s.log.Error("keep logs", "error", err)
		}
		_ = os.RemoveAll(s.dir)
	}
}

// keepLogs copies what the programs printed beside the results.
func (s *stage) keepLogs() error {
	logs, err := filepath.Glob(filepath.Join(s.dir, "*.log"))
	if err != nil {
		return err
	}
	to := filepath.Join(s.o.outDir, "logs")
	errs := []error{os.MkdirAll(to, 0o755)}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(path)), b, 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

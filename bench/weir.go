package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// weirAgent is Weir as it is run on a node: the agent, and the proxy, which is
// started beside it as in a cluster, to say how many threads it may have.
type weirAgent struct {
	node    *node
	binary  string
	state   string
	objects string   // directory of YAML
	dir     string   // for logs
	proxy   *process // launcher and proxy
	agent   *process
}

// startWeir builds Weir, starts its agent on the node and returns when all
// objects are enforced.
func startWeir(ctx context.Context, s *stage, n *node) (*weirAgent, error) {
	// A copy of its own, so that its processes are told from any other Weir's.
	w := &weirAgent{node: n, binary: filepath.Join(s.dir, "weir"), state: n.name, objects: filepath.Join(s.dir, "objects")}
	if s.o.weir != "" {
		if err := command("cp", s.o.weir, w.binary); err != nil {
			return nil, err
		}
	} else if err := command("go", "build", "-o", w.binary, "./cmd/weir"); err != nil {
		return nil, err
	}
	if err := os.Mkdir(w.objects, 0o755); err != nil {
		return nil, err
	}
	if err := writeObjects(w.objects, n); err != nil {
		return nil, fmt.Errorf("write objects: %w", err)
	}
	// As the rivals: so many threads for the work in between.
	var err error
	w.proxy, err = start(n.name, s.dir, "weir-proxy", nil, w.binary, "proxy", "--state", w.state, "--threads", fmt.Sprint(s.workers))
	if err != nil {
		return nil, err
	}
	w.dir = s.dir
	if err := w.startAgent(); err != nil {
		return w, err
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		out, err := run(ctx, n.name, w.binary, "status", "--state", w.state, "--wait", "--timeout", "30s")
		if err == nil {
			for _, pid := range w.pids() { // the proxy has a session of its own
				if err := raiseSession(pid); err != nil {
					return w, err
				}
			}
			s.log.Info("Weir enforces", "pods", len(n.pods), "policies", subjects*policiesPerSubject+4, "after", time.Since(begin).Round(time.Millisecond))
			return w, nil
		}
		if ctx.Err() != nil || !w.agent.running() {
			return w, fmt.Errorf("wait for Weir: %w: %s\n%s", err, bytes.TrimSpace(out), w.tail())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (w *weirAgent) startAgent() (err error) {
	w.agent, err = start(w.node.name, w.dir, "weir-agent", nil, w.binary, "agent", "--objects", w.objects, "--node-name", nodeName,
		"--state", w.state)
	return err
}

// pids are all processes of this Weir: agent, launcher and proxy. Whatever they
// use is counted as the proxy's.
func (w *weirAgent) pids() []int { return runningBinary(w.binary) }

// proxyPids are those of them that are the proxy and its launcher.
func (w *weirAgent) proxyPids() []int {
	agents := w.agent.tree()
	return slices.DeleteFunc(w.pids(), func(pid int) bool { return slices.Contains(agents, pid) })
}

func (w *weirAgent) tail() string { return w.agent.tail() + "\n" + w.proxy.tail() }

// close ends the agent and takes away all that it made.
func (w *weirAgent) close() error {
	w.agent.stop()
	w.proxy.stop()
	out, err := exec.Command("nsenter", "--net="+netnsPath(w.node.name), w.binary, "uninstall", "--state", w.state).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("weir uninstall: %w: %s", err, bytes.TrimSpace(out))
	}
	for _, pid := range w.pids() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return err
}

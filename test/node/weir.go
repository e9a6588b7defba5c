package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weirnet/weir/flow"
)

// Weir is the real program on a node.
type Weir struct {
	Binary  string
	Objects Objects
	RunDir  string // /run/weir/STATE

	node  *Node
	log   io.Writer
	agent *Process
}

// NewWeir prepares to run Weir on the node over a directory of objects; what
// agent and proxy print goes to log. Nothing is started.
func (n *Node) NewWeir(binary string, objects Objects, log io.Writer) *Weir {
	n.weir = &Weir{Binary: binary, Objects: objects, RunDir: filepath.Join(runDir, n.State), node: n, log: log}
	return n.weir
}

// Weir is what NewWeir made last, or nil.
func (n *Node) Weir() *Weir { return n.weir }

// AgentArgs is the agent's command line after the program's name.
func (w *Weir) AgentArgs(extra ...string) []string {
	// Never the machine's own: of several nodes each has its part.
	cgroup := w.node.Cgroup
	if cgroup == "" {
		cgroup = "none"
	}
	return append([]string{"agent", "--objects", w.Objects.Dir, "--node-name", w.node.Name, "--state", w.node.State, "--cgroup", cgroup}, extra...)
}

// Start starts the agent; Wait tells when it enforces.
func (w *Weir) Start(extra ...string) error {
	return w.StartCommand(exec.Command(w.Binary, w.AgentArgs(extra...)...))
}

// StartCommand starts the agent by a command of the caller's.
func (w *Weir) StartCommand(cmd *exec.Cmd) (err error) {
	cmd.Stdout, cmd.Stderr = w.log, w.log
	w.agent, err = w.node.StartProcess(cmd)
	return err
}

// Agent is the running agent, or the one that ran last.
func (w *Weir) Agent() *Process { return w.agent }

// Command runs a verb of the CLI against this Weir.
func (w *Weir) Command(ctx context.Context, verb string, args ...string) (string, error) {
	return w.node.Host.Run(ctx, "", w.Binary, append([]string{verb, "--state", w.node.State}, args...)...)
}

// Wait returns once all that was in the directory when it was called is
// enforced.
func (w *Weir) Wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	waited := make(chan error, 1)
	go func() {
		_, err := w.Command(ctx, "status", "--wait")
		waited <- err
	}()
	var ended <-chan struct{}
	if w.agent != nil {
		ended = w.agent.Done()
	}
	select {
	case err := <-waited:
		return err
	case <-ended:
		cancel()
		<-waited
		return fmt.Errorf("the agent ended: %w", cmpErr(w.agent.Err()))
	}
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// ProxyPids are the processes of the proxy, supervisor first.
func (w *Weir) ProxyPids() []int {
	return processes(func(pid int) bool {
		return belongsToState(pid, w.node.State) && hasVerb(pid, "proxy") && !isZombie(pid)
	})
}

// Pids are all processes of this Weir.
func (w *Weir) Pids() []int {
	return processes(func(pid int) bool { return belongsToState(pid, w.node.State) && !isZombie(pid) })
}

func belongsToState(pid int, state string) bool {
	for _, s := range stateArgs(pid) {
		if s == state {
			return true
		}
	}
	return false
}

// Remove stops the agent and uninstalls. What is left even so is removed, and
// its presence is an error.
func (w *Weir) Remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if w.agent != nil {
		w.agent.Stop()
	}
	_, err := w.Command(ctx, "uninstall")
	if pids := w.Pids(); len(pids) > 0 {
		err = errors.Join(err, fmt.Errorf("processes %v are left of %s", pids, w.node.State))
		killAll(func(pid int) bool { return belongsToState(pid, w.node.State) })
	}
	return errors.Join(err, removeRunDir(w.RunDir))
}

// Flows follows `weir flows -f -o json`, from this moment on, until the function
// that is returned is called; each record goes to see.
func (w *Weir) Flows(ctx context.Context, see func(flow.Record), args ...string) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	since := time.Now().Format(time.RFC3339Nano)
	cmd := exec.CommandContext(ctx, w.Binary, append([]string{"flows", "--state", w.node.State, "-f", "--since", since, "-o", "json"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("follow flows: %w", err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := w.node.Host.Start(cmd); err != nil {
		cancel()
		return nil, fmt.Errorf("follow flows: %w", err)
	}
	read := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var r flow.Record
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				read <- fmt.Errorf("read flow %q: %w", lines.Text(), err)
				return
			}
			see(r)
		}
		read <- lines.Err()
	}()
	return func() error {
		cancel()
		err := <-read
		if wait := cmd.Wait(); wait != nil && ctx.Err() == nil {
			err = errors.Join(err, fmt.Errorf("%w: %s", wait, stderr.String()))
		}
		return err
	}, nil
}

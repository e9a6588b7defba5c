package node

import (
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Process is a program that runs in a namespace of a node.
type Process struct {
	cmd  *exec.Cmd
	in   *Netns
	done chan struct{}

	mu  sync.Mutex
	err error
}

// StartProcess runs a program on the host until it ends or the node goes.
func (n *Node) StartProcess(cmd *exec.Cmd) (*Process, error) { return n.StartProcessIn(n.Host, cmd) }

// StartProcessIn is StartProcess in another namespace of the network.
func (n *Node) StartProcessIn(in *Netns, cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A group of its own: an interrupt at the terminal reaches only whoever
	// started the node, which then stops things in order.
	cmd.SysProcAttr.Setpgid = true
	if err := in.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", cmd.Path, in.Name, err)
	}
	p := &Process{cmd: cmd, in: in, done: make(chan struct{})}
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.done)
	}()
	n.mu.Lock()
	n.processes = append(slices.DeleteFunc(n.processes, (*Process).ended), p)
	n.mu.Unlock()
	return p, nil
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err tells how it ended; nil while it runs.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(s syscall.Signal) {
	if !p.ended() {
		_ = p.cmd.Process.Signal(s)
	}
}

// Kill ends it at once and waits until it is gone.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks it to end, and kills its whole group when it has not after five
// seconds.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		if !p.ended() {
			_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
		}
		<-p.done
	}
}

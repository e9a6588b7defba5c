// Package sockets opens sockets in another process, step by step: where that
// runs, in which cgroup and network namespace, is what tests are about.
//
// The process is the test's own program once more: its TestMain calls Main
// first, and Command makes the command.
package sockets

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// variable in the environment makes a program the other process.
const variable = "WEIRTEST_SOCKETS"

// Main is the other process, which ends when its standard input does; in every
// other it returns at once.
func Main() {
	if os.Getenv(variable) == "" {
		return
	}
	serve(os.Stdin, os.Stdout)
	os.Exit(0)
}

// Command makes the other process. Who starts it says where it is to run.
func Command() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	// Signals of Go's scheduler would interrupt calls that wait.
	cmd.Env = append(os.Environ(), variable+"=1", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	return cmd
}

// Process opens sockets where it runs.
type Process struct {
	mu   sync.Mutex
	cmd  *exec.Cmd
	in   io.WriteCloser
	to   *json.Encoder
	from *json.Decoder
	last int
}

// Start starts a Command by start, which may put it into a namespace first.
func Start(cmd *exec.Cmd, start func(*exec.Cmd) error) (*Process, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start a process for sockets: %w", err)
	}
	return &Process{cmd: cmd, in: in, to: json.NewEncoder(in), from: json.NewDecoder(out)}, nil
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Stop ends it with all its sockets.
func (p *Process) Stop() {
	p.in.Close()
	_ = p.cmd.Wait() // it has nothing to say
}

type question struct {
	Op     string
	Socket int
	Family Family
	Type   int
	Addr   netip.AddrPort
	Data   string
}

type answer struct {
	Errno syscall.Errno
	Data  string
	Addr  netip.AddrPort
}

func (p *Process) ask(q question) (answer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var a answer
	if err := errors.Join(p.to.Encode(q), p.from.Decode(&a)); err != nil {
		return a, fmt.Errorf("ask the process for sockets: %w", err)
	}
	if a.Errno != 0 {
		return a, a.Errno
	}
	return a, nil
}

// Family is how a socket sees addresses.
type Family int

// Mapped is an IPv6 socket for IPv4.
const (
	IPv4 Family = iota
	IPv6
	Mapped
)

func (f Family) String() string { return [...]string{"IPv4", "IPv6", "IPv4 in IPv6"}[f] }

// Socket is one of the process's. What fails with an error number of the
// kernel's returns that; a call that waits longer than two seconds EAGAIN or
// EINPROGRESS.
type Socket struct {
	p  *Process
	id int
}

// Open opens a socket: type is SOCK_STREAM or SOCK_DGRAM.
func (p *Process) Open(f Family, typ int) (*Socket, error) {
	p.mu.Lock()
	p.last++
	id := p.last
	p.mu.Unlock()
	_, err := p.ask(question{Op: "open", Socket: id, Family: f, Type: typ})
	return &Socket{p, id}, err
}

func (s *Socket) Connect(to netip.AddrPort) error {
	_, err := s.p.ask(question{Op: "connect", Socket: s.id, Addr: to})
	return err
}

// Peer is getpeername.
func (s *Socket) Peer() (netip.AddrPort, error) {
	a, err := s.p.ask(question{Op: "peer", Socket: s.id})
	return a.Addr, err
}

func (s *Socket) Send(data string) error {
	_, err := s.p.ask(question{Op: "send", Socket: s.id, Data: data})
	return err
}

func (s *Socket) SendTo(data string, to netip.AddrPort) error {
	_, err := s.p.ask(question{Op: "send", Socket: s.id, Data: data, Addr: to})
	return err
}

// Receive waits for data; from is the zero AddrPort where the kernel names nobody.
func (s *Socket) Receive() (data string, from netip.AddrPort, err error) {
	a, err := s.p.ask(question{Op: "receive", Socket: s.id})
	return a.Data, a.Addr, err
}

func (s *Socket) Close() error {
	_, err := s.p.ask(question{Op: "close", Socket: s.id})
	return err
}

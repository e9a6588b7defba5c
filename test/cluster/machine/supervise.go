package machine

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// children are the processes that init started and those it inherited.
type children struct {
	mu    sync.Mutex
	ended map[int]chan syscall.WaitStatus
}

// run starts the machine's processes and never returns on its own: when this
// process ends, the kernel ends all others.
func run(spec Spec) error {
	syscall.CloseOnExec(readyFd)
	if spec.NoUserNamespaces {
		if err := forbidUserNamespaces(); err != nil {
			return err
		}
	}
	c := &children{ended: map[int]chan syscall.WaitStatus{}}
	if spec.Forward != "" {
		syscall.CloseOnExec(listenerFd)
		file := os.NewFile(listenerFd, "listener")
		l, err := net.FileListener(file)
		if err != nil {
			return fmt.Errorf("take the listener: %w", err)
		}
		file.Close()
		go forward(l, spec.Forward)
	}
	for _, p := range spec.Processes {
		go c.keep(p, filepath.Join(spec.Dir, p.Name+".log"))
	}
	ready := os.NewFile(readyFd, "ready")
	if _, err := ready.WriteString(readyWord); err != nil {
		return err
	}
	ready.Close()
	c.reap()
	return nil
}

// keep runs p, again and again.
func (c *children) keep(p Process, logPath string) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		return
	}
	waitFor(p.After)
	for ; ; time.Sleep(time.Second) {
		ended, err := c.start(p, log)
		if err != nil {
			fmt.Fprintf(log, "init: start %s: %v\n", p.Name, err)
			continue
		}
		status := <-ended
		fmt.Fprintf(log, "init: %s ended (exit code %d, signal %d) at %s\n",
			p.Name, status.ExitStatus(), status.Signal(), time.Now().Format(time.RFC3339))
	}
}

func (c *children) start(p Process, log *os.File) (<-chan syscall.WaitStatus, error) {
	path, err := exec.LookPath(p.Args[0])
	if err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// The lock is held over the start, so that reap can't see the end of a
	// process nobody waits for yet.
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := syscall.ForkExec(path, p.Args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), p.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	c.ended[pid] = ended
	return ended, nil
}

// reap waits for every child there is, orphans among them, for ever.
func (c *children) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil {
			time.Sleep(20 * time.Millisecond) // no child right now
			continue
		}
		c.mu.Lock()
		if ended, ok := c.ended[pid]; ok {
			ended <- status
			delete(c.ended, pid)
		}
		c.mu.Unlock()
	}
}

// waitFor returns when the URL answers with 200.
func waitFor(url string) {
	if url == "" {
		return
	}
	client := &http.Client{
		Timeout: 2 * time.Second,
		// Whoever answers is only asked whether it is up.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	defer client.CloseIdleConnections()
	for ; ; time.Sleep(100 * time.Millisecond) {
		r, err := client.Get(url)
		if err != nil {
			continue
		}
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			return
		}
	}
}

// forward passes each connection on to an address of the machine.
func forward(l net.Listener, to string) {
	for {
		client, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "init: accept:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go func() {
			defer client.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			server, err := new(net.Dialer).DialContext(ctx, "tcp", to)
			if err != nil {
				return
			}
			defer server.Close()
			var both sync.WaitGroup
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				both.Go(func() {
					_, _ = io.Copy(way[1], way[0])
					_ = way[1].(*net.TCPConn).CloseWrite()
				})
			}
			both.Wait()
		}()
	}
}

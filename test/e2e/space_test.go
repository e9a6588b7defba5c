package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace, that of a pod or of a machine.
type space struct{ file *os.File }

func openSpace(path string) (*space, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &space{f}, nil
}

// do runs f on a thread in the namespace. What f opens stays there.
func (s *space) do(f func() error) error {
	failed := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		failed <- f()
	}()
	return <-failed
}

// dial connects from inside to an address (no name).
func (s *space) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = s.do(func() error {
		var err error
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// connects tells whether a TCP connection comes about within a second.
func (s *space) connects(address string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := s.dial(ctx, "tcp", address)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// get asks once, on a connection of its own.
func (s *space) get(address, path string) (int, error) {
	status, _, err := s.fetch(address, path)
	return status, err
}

// fetch is get with what was answered.
func (s *space) fetch(address, path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := s.dial(ctx, "tcp", address)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = c.Close() }()
	return ask(c, bufio.NewReader(c), address, path)
}

// ask asks on an open connection, and never again.
func ask(c net.Conn, r *bufio.Reader, host, path string) (status int, body string, err error) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// addresses of the namespace's interfaces.
func (s *space) addresses() (out []netip.Addr, err error) {
	err = s.do(func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Addr())
			}
		}
		return err
	})
	return out, err
}

// podSpace finds the namespace of the pod with an address, below the root
// directory of its node.
func podSpace(root string, pod netip.Addr) (*space, error) {
	files, err := filepath.Glob(filepath.Join(root, "run/netns/*"))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		s, err := openSpace(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		own, err := s.addresses()
		for _, a := range own {
			if err == nil && a == pod {
				return s, nil
			}
		}
		_ = s.file.Close()
	}
	return nil, fmt.Errorf("no namespace of a pod has %s", pod)
}

// eventually waits until f says "" and returns what it said last.
func eventually(limit time.Duration, f func() string) string {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		said := f()
		if said == "" || time.Now().After(end) {
			return strings.TrimSpace(said)
		}
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// idleCommand opens connections, asks once on each, says so and holds them
// until its standard input ends.
func idleCommand(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("idle wants an address, a path and a number of connections")
	}
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	ask := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", args[1], to)
	for i := range count {
		if err := openIdle(to, ask); err != nil {
			return fmt.Errorf("connection %d of %d: %w", i+1, count, err)
		}
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// openIdle opens one connection and reads one answer; the descriptor stays
// open until the process ends.
func openIdle(to netip.AddrPort, ask []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return fmt.Errorf("set up socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := unix.Write(fd, ask); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	// The answer is small: its end is in the buffer with its head.
	buf := make([]byte, 4096)
	n := 0
	for !bytes.Contains(buf[:n], []byte("\r\n\r\nhello from the pod\n")) {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR { // the Go runtime signals its threads
			continue
		}
		if err != nil || m == 0 {
			return fmt.Errorf("read the answer after %q: %w", buf[:n], err)
		}
		n += m
	}
	if !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answered %q", buf[:n])
	}
	return nil
}

// idleFigures holds keep-alive connections through each proxy in turn and
// reads what its processes keep in memory meanwhile.
func idleFigures(ctx context.Context, s *stage) ([]figure, error) {
	var figures []figure
	for _, name := range []string{weirHTTP, nginx, haproxy, envoy} {
		t, ok := s.targets[name]
		if !ok {
			continue
		}
		pids, from := t.pids, s.plain.idlers()
		if name == weirHTTP {
			pids, from = s.weir.proxyPids, s.weir.node.idlers()
		}
		// A proxy needs two descriptors for each, and a few.
		each := min(s.o.effort.idle, (s.files-400)/2) / len(from)
		before := rss(pids())
		after, err := holdIdle(ctx, t, from, each, s.o.effort.rest, pids)
		if err != nil {
			return figures, fmt.Errorf("%s: %w", name, err)
		}
		f := figure{Name: "idle connections: " + name + " RSS", Unit: "MB", Value: float64(after) / 1e6,
			Note: fmt.Sprintf("with %d connections; %.1f MB before", each*len(from), float64(before)/1e6)}
		if name == weirHTTP {
			f.Note += "; each has its own connection to the server, which the others pool"
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// holdIdle opens so many connections from each of the pods, waits for the
// proxy to rest, and reads its memory.
func holdIdle(ctx context.Context, t target, from []pod, each int, rest time.Duration, pids func() []int) (used int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var release []func() error
	defer func() {
		for _, f := range release {
			err = errors.Join(err, f())
		}
	}()
	for _, p := range from {
		f, err := openIdlers(ctx, t, p, each)
		if err != nil {
			return 0, err
		}
		release = append(release, f)
	}
	time.Sleep(rest)
	return rss(pids()), nil
}

// openIdlers returns when the connections of one pod are open; what it returns
// closes them.
func openIdlers(ctx context.Context, t target, from pod, count int) (release func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd, err := placed(ctx, from.ns, self, "idle", t.to(hundredPort).String(), request(hundredPort, smallItem), fmt.Sprint(count))
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release = func() error {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("hold %d connections from %s: %w: %s", count, from.ns, err, bytes.TrimSpace(stderr.Bytes()))
		}
		return nil
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return nil, fmt.Errorf("open %d connections from %s: %w", count, from.ns, release())
	}
	return release, nil
}

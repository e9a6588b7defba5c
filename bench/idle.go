package main

import (
	"bufio"
	"bytes"
	"context"
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
		pids := t.pids
		if name == weirHTTP {
			pids = s.weir.proxyPids
		}
		// A proxy needs two descriptors for each, and a few.
		count := min(s.o.effort.idle, (s.files-400)/2)
		before := rss(pids())
		after, err := holdIdle(ctx, t, count, pids)
		if err != nil {
			return figures, fmt.Errorf("%s: %w", name, err)
		}
		f := figure{Name: "idle connections: " + name + " RSS", Unit: "MB", Value: float64(after) / 1e6,
			Note: fmt.Sprintf("with %d connections; %.1f MB before", count, float64(before)/1e6)}
		if name == weirHTTP {
			f.Note += "; each has its own connection to the server, which the others pool"
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// holdIdle opens the connections, waits for the proxy to rest, and reads its
// memory.
func holdIdle(ctx context.Context, t target, count int, pids func() []int) (int64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cmd, err := placed(ctx, t.from.ns, self, "idle", t.to(hundredPort).String(), request(hundredPort, smallItem), fmt.Sprint(count))
	if err != nil {
		return 0, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	var used int64
	if line == "ready\n" {
		time.Sleep(5 * time.Second)
		used = rss(pids())
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil || used == 0 {
		return 0, fmt.Errorf("hold %d connections: %w: %s", count, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return used, nil
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The TCP load: one byte to and fro over standing connections (rr), a
// connection per exchange that the server closes (crr), or bytes one way
// (stream). Client and server are
// this program again, each one thread that lives in raw system calls, so that
// the Go scheduler has no part in what is measured.

// steadyRuntime keeps the Go runtime from interrupting that thread.
const steadyRuntime = "GODEBUG=asyncpreemptoff=1"

const (
	modeRR     = "rr"
	modeCRR    = "crr"
	modeStream = "stream"
)

// streamChunk is what one call sends or receives of a stream.
const streamChunk = 128 << 10

// tcpSummary is what the client prints.
type tcpSummary struct {
	Exchanges int     `json:"exchanges"` // of a stream: megabytes
	Seconds   float64 `json:"seconds"`
}

// tcpServe answers on port until the process is killed. In crr mode it closes
// after the answer: the client's port is then free at once.
func tcpServe(mode string, port int) error {
	steadyThread()
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open listener: %w", err)
	}
	if err := unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("set up listener: %w", err)
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Port: port}); err != nil {
		return fmt.Errorf("bind port %d: %w", port, err)
	}
	if err := unix.Listen(l, 4096); err != nil {
		return fmt.Errorf("listen on port %d: %w", port, err)
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	if err := p.add(l); err != nil {
		return err
	}
	buf := make([]byte, streamChunk)
	for {
		ready, err := p.wait(-1)
		if err != nil {
			return err
		}
		for _, fd := range ready {
			if fd != l {
				tcpAnswer(fd, mode, buf)
				continue
			}
			for {
				c, err := rawAccept(l)
				if err != nil {
					break
				}
				_ = unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
				if err := p.add(c); err != nil {
					return err
				}
			}
		}
	}
}

func tcpAnswer(fd int, mode string, buf []byte) {
	n, err := rawRead(fd, buf)
	if err == unix.EAGAIN {
		return
	}
	if err == nil && n > 0 && mode != modeStream {
		_, err = rawWrite(fd, buf[:n])
	}
	if err != nil || n == 0 || mode == modeCRR {
		_ = unix.Close(fd)
	}
}

// tcpClient keeps conns exchanges in flight for d.
func tcpClient(mode string, to netip.AddrPort, conns int, d time.Duration) (tcpSummary, error) {
	steadyThread()
	p, err := newPoller()
	if err != nil {
		return tcpSummary{}, err
	}
	addr := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	if mode == modeStream {
		return tcpStream(addr, d)
	}
	for range conns {
		if err := tcpDial(p, addr); err != nil {
			return tcpSummary{}, err
		}
	}
	buf := make([]byte, 64)
	begin := time.Now()
	s := tcpSummary{}
	for time.Since(begin) < d {
		ready, err := p.wait(1000)
		if err != nil {
			return s, err
		}
		if len(ready) == 0 {
			return s, fmt.Errorf("exchange with %s: no answer for a second after %d", to, s.Exchanges)
		}
		for _, fd := range ready {
			n, err := rawRead(fd, buf)
			switch {
			case err == unix.EAGAIN:
			case err != nil:
				return s, fmt.Errorf("exchange with %s: %w", to, err)
			case n == 0 && mode == modeRR:
				return s, fmt.Errorf("exchange with %s: closed by the server", to)
			case n == 0:
				s.Exchanges++
				_ = unix.Close(fd)
				if err := tcpDial(p, addr); err != nil {
					return s, err
				}
			case mode == modeRR:
				s.Exchanges++
				if _, err := rawWrite(fd, buf[:1]); err != nil {
					return s, fmt.Errorf("exchange with %s: %w", to, err)
				}
			}
		}
	}
	s.Seconds = time.Since(begin).Seconds()
	return s, nil
}

// tcpStream sends over one connection for d.
func tcpStream(to unix.Sockaddr, d time.Duration) (tcpSummary, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return tcpSummary{}, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return tcpSummary{}, fmt.Errorf("connect: %w", err)
	}
	buf := make([]byte, streamChunk)
	sent := 0
	begin := time.Now()
	for time.Since(begin) < d {
		n, err := rawWrite(fd, buf)
		if err != nil && err != unix.EINTR {
			return tcpSummary{}, fmt.Errorf("send: %w", err)
		}
		sent += n
	}
	return tcpSummary{Exchanges: sent / 1e6, Seconds: time.Since(begin).Seconds()}, unix.Close(fd)
}

// tcpDial connects, blocking as the handshake is part of what is measured,
// and sends the first byte.
func tcpDial(p *poller, to unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("set up socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set up socket: %w", err)
	}
	if _, err := rawWrite(fd, []byte{'x'}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return p.add(fd)
}

// startTCPServer serves in the node's server pod, on CPU 1.
func startTCPServer(n *node, dir, mode string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(n.server().ns, dir, mode+"-"+n.name, []string{steadyRuntime}, "taskset", "-c", "1", self, "tcp-serve", mode, fmt.Sprint(tcpPorts()[mode]))
}

// tcpPorts are the ports the modes are served on.
func tcpPorts() map[string]int {
	return map[string]int{modeRR: tcpPort, modeCRR: tcpPort + 1, modeStream: tcpPort + 2}
}

// tcpLoad runs the client in a pod, on CPU 0, and returns exchanges (of a
// stream: megabytes) per second, and the CPU time the client used.
func tcpLoad(ctx context.Context, from pod, mode string, to netip.Addr, conns int, d time.Duration) (float64, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, d+20*time.Second)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	out, cpu, err := runTimed(ctx, from.ns, "env", steadyRuntime, "taskset", "-c", "0", self, "tcp-load", mode,
		netip.AddrPortFrom(to, uint16(tcpPorts()[mode])).String(), fmt.Sprint(conns), d.String())
	if err != nil {
		return 0, 0, err
	}
	v, err := parseTCP(out)
	return v, cpu, err
}

func parseTCP(out []byte) (float64, error) {
	var s tcpSummary
	if err := json.Unmarshal(out, &s); err != nil {
		return 0, fmt.Errorf("read the TCP load's summary: %w", err)
	}
	if s.Seconds == 0 || s.Exchanges == 0 {
		return 0, fmt.Errorf("TCP load: no exchange was finished")
	}
	return float64(s.Exchanges) / s.Seconds, nil
}

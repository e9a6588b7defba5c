package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// inheritTimeout is how long another agent may take to hand over its port.
const inheritTimeout = 2 * time.Second

// inherit takes over the metrics' port from the agent that has the state.
func (s *standby) inherit(ctx context.Context, o *agentOptions, log *slog.Logger) {
	if o.metricsAddr == "" || s.port != nil {
		return
	}
	port, err := inheritPort(ctx, o.state.socket(), o.metricsAddr)
	if err != nil {
		log.Warn("the metrics' port is taken when the other agent has ended", "error", err)
	}
	s.port = port
}

// listenPort opens the metrics' port, unless it was inherited. nil: there is to
// be none.
func (o *agentOptions) listenPort(inherited *net.TCPListener) (*net.TCPListener, error) {
	if o.metricsAddr == "" || inherited != nil {
		return inherited, nil
	}
	l, err := net.Listen("tcp", o.metricsAddr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", o.metricsAddr, err)
	}
	return l.(*net.TCPListener), nil
}

// inheritPort gets the listener of the metrics' port from the agent that has
// the state: a connection that one has not accepted yet is accepted here. The
// port is the same socket for both, so that none is refused between them. nil:
// there is none to be had.
func inheritPort(ctx context.Context, socket, addr string) (*net.TCPListener, error) {
	ctx, cancel := context.WithTimeout(ctx, inheritTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the port: %w", err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(inheritTimeout)) // of a fresh socket
	if _, err := c.Write([]byte("GET " + portPath + " HTTP/1.0\r\n\r\n")); err != nil {
		return nil, fmt.Errorf("ask for the port: %w", err)
	}
	text, rights := make([]byte, 1024), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(text, rights)
	if err != nil {
		return nil, fmt.Errorf("ask for the port: %w", err)
	}
	f := received(rights[:n])
	if f == nil {
		return nil, nil // one of another version, or without a port
	}
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over the port: %w", err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok || !samePort(l.Addr(), addr) {
		return nil, l.Close()
	}
	return tcp, nil
}

func received(rights []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "metrics")
}

// samePort tells whether a listener is the one that addr asks for.
func samePort(a net.Addr, addr string) bool {
	want, err := net.ResolveTCPAddr("tcp", addr)
	have, ok := a.(*net.TCPAddr)
	return err == nil && ok && have.Port == want.Port &&
		(have.IP.Equal(want.IP) || have.IP.IsUnspecified() && (want.IP == nil || want.IP.IsUnspecified()))
}

// portPath is asked for the listener on the agent's socket.
const portPath = "/metrics-listener"

// servePort hands the metrics' port to an agent that stands by.
func (s *agentServer) servePort(w http.ResponseWriter, _ *http.Request) {
	l := s.port
	if l == nil {
		http.NotFound(w, nil)
		return
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = c.Close() }()
	u, ok := c.(*net.UnixConn)
	if !ok {
		return
	}
	f, err := l.File()
	if err != nil {
		s.log.Error("hand over the metrics' port", "error", err)
		return
	}
	defer func() { _ = f.Close() }()
	_, _, err = u.WriteMsgUnix([]byte("HTTP/1.0 200 OK\r\n\r\n"), unix.UnixRights(int(f.Fd())), nil)
	if err != nil {
		s.log.Error("hand over the metrics' port", "error", err)
	}
}

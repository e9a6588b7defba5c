package control

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// MaxMessage bounds a gRPC message either way: all rule sets of a node go in
// one.
const MaxMessage = 256 << 20

// NewClient speaks gRPC over c, whose preface is done, and owns it. It never
// dials again: once c is gone every call fails.
func NewClient(c net.Conn) (*grpc.ClientConn, error) {
	var once sync.Once
	return grpc.NewClient("passthrough:///proxy",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			err := errors.New("the connection to the proxy is gone")
			var conn net.Conn
			once.Do(func() { conn, err = c, nil })
			return conn, err
		}))
}

// Serve speaks gRPC over c, whose preface is done, and owns it. It returns
// when c has ended, for whatever reason, or s was stopped.
func Serve(s *grpc.Server, c net.Conn) error {
	l := &oneConn{conn: make(chan net.Conn, 1), done: make(chan struct{}), addr: c.LocalAddr()}
	l.conn <- &notifyClose{Conn: c, closed: sync.OnceFunc(func() { _ = l.Close() })}
	err := s.Serve(l)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// oneConn is a listener that accepts one connection and ends with it.
type oneConn struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
	addr net.Addr
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.addr }

type notifyClose struct {
	net.Conn
	closed func()
}

func (c *notifyClose) Close() error {
	c.closed()
	return c.Conn.Close()
}

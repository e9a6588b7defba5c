package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
)

// session is a connection to a proxy.
type session struct {
	place   place
	conn    *net.UnixConn
	welcome *control.Welcome
	netns   *os.File

	// Once it is joined:
	generation uint8
	adopted    bool // it was current before
	entry      bpf.Proxy
	rpc        *grpc.ClientConn
	client     control.ProxyClient
	status     atomic.Pointer[control.StatusResponse] // the latest; nil: none yet

	steps // of Run alone

	once sync.Once
	done chan struct{}
	mu   sync.Mutex // held while rpc is set, or closed
}

// steps are how far a proxy has come.
type steps struct {
	joined  bool
	heir    *session // has the other end of its connection to a successor
	leaving bool     // was told to hand over and to end
}

func (s *session) close() {
	s.once.Do(func() {
		close(s.done)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.rpc != nil {
			_ = s.rpc.Close()
		}
		_ = s.conn.Close()
		s.netns.Close()
	})
}

// errEnded: the connection is over.
var errEnded = errors.New("the connection to the proxy has ended")

// ended tells whether the connection is over.
func (s *session) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// ask asks the proxy how it is.
func (s *session) ask(ctx context.Context, limit time.Duration) (*control.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := s.client.Status(ctx, &control.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the proxy: %w", err)
	}
	s.status.Store(answer)
	return answer, nil
}

// dial connects to the control socket and hears the proxy's welcome, which may
// take that long.
func dial(ctx context.Context, p place, timeout time.Duration) (*session, error) {
	d := net.Dialer{}
	nc, err := d.DialContext(ctx, "unix", p.socket())
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
	c := nc.(*net.UnixConn)
	s, err := greet(c, timeout)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
	s.place = p
	return s, nil
}

func greet(c *net.UnixConn, timeout time.Duration) (*session, error) {
	if err := checkLauncher(c); err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	s := &session{conn: c, welcome: &control.Welcome{}, done: make(chan struct{})}
	files, err := control.Receive(c, s.welcome)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		control.Close(files)
		return nil, fmt.Errorf("%d descriptors came with its welcome", len(files))
	}
	s.netns = files[0]
	return s, nil
}

// speaks returns an error if the proxy is one of another protocol. All that may
// be asked of it then is to stop.
func (s *session) speaks() error {
	if s.welcome.Protocol != control.Protocol {
		return fmt.Errorf("the proxy speaks protocol %d, this is %d", s.welcome.Protocol, control.Protocol)
	}
	return nil
}

// checkLauncher makes sure that it was this user (root) who made the socket.
func checkLauncher(c *net.UnixConn) error {
	user, err := control.PeerUser(c)
	if err != nil {
		return err
	}
	if user != uint32(os.Getuid()) {
		return fmt.Errorf("its socket was made by user %d", user)
	}
	return nil
}

func nobodyListens(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

// request asks a proxy for something on a connection of its own, which may take
// that long.
func (p place) request(ctx context.Context, limit time.Duration, w *control.Wiring, files ...*os.File) error {
	s, err := dial(ctx, p, limit)
	if err != nil {
		return err
	}
	defer s.close()
	return s.request(w, files...)
}

// request asks for what a Wiring may ask for instead of wiring.
func (s *session) request(w *control.Wiring, files ...*os.File) error {
	if err := control.Send(s.conn, w, files...); err != nil {
		return err
	}
	answer := &control.Wired{}
	none, err := control.Receive(s.conn, answer)
	control.Close(none)
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	return err
}

// talk ends the preface and starts gRPC.
func (s *session) talk() error {
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	rpc, err := control.NewClient(s.conn)
	if err != nil {
		return fmt.Errorf("talk to the proxy: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended() {
		_ = rpc.Close()
		return errEnded
	}
	s.rpc, s.client = rpc, control.NewProxyClient(rpc)
	return nil
}

// receive passes the proxy's records on until the connection ends, and tells
// why it did.
func (m *Manager) receive(ctx context.Context, s *session) error {
	defer s.close()
	stream, err := s.client.Records(ctx, &control.RecordsRequest{})
	if err != nil {
		return err
	}
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("it hung up")
		}
		if err != nil {
			return err
		}
		if batch.Cut > 0 {
			m.log.Warn("connections were cut: they had no more time", "generation", s.generation, "connections", batch.Cut)
			if m.opts.Cut != nil {
				m.opts.Cut(batch.Cut)
			}
		}
		if m.opts.Record == nil {
			continue
		}
		for _, r := range batch.Records {
			record, rule := recordOf(r)
			m.opts.Record(record, rule)
		}
	}
}

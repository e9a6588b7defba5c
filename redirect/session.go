package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

// session is a connection to a proxy.
type session struct {
	conn    *net.UnixConn
	welcome *control.Welcome
	netns   *os.File

	// Once it is joined:
	generation uint8
	adopted    bool // it was wired and current before
	entry      bpf.Proxy
	rpc        *grpc.ClientConn
	client     control.ProxyClient

	once sync.Once
	done chan struct{}
}

func (s *session) close() {
	s.once.Do(func() {
		close(s.done)
		if s.rpc != nil {
			_ = s.rpc.Close()
		}
		_ = s.conn.Close()
		s.netns.Close()
	})
}

// ended tells whether the connection is over.
func (s *session) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// dial connects to the control socket and hears the proxy's welcome, which may
// take that long.
func dial(ctx context.Context, runDir string, timeout time.Duration) (*session, error) {
	d := net.Dialer{}
	nc, err := d.DialContext(ctx, "unix", filepath.Join(runDir, socketName))
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
	c := nc.(*net.UnixConn)
	s, err := greet(c, timeout)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
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
	if s.welcome.Protocol != control.Protocol || len(files) != 1 {
		control.Close(files)
		return nil, fmt.Errorf("it speaks protocol %d, this is %d", s.welcome.Protocol, control.Protocol)
	}
	s.netns = files[0]
	return s, nil
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

// connect finds the running proxy, or starts one.
func (m *Manager) connect(ctx context.Context) (*session, error) {
	s, err := dial(ctx, m.opts.RunDir, greetTimeout)
	if err != nil && hangs(err) {
		m.log.Error("the proxy does not say who it is", "error", err)
		m.endHanging()
	}
	if err == nil || !nobodyListens(err) {
		return s, err
	}
	// What went to it is not answered any more.
	if retireErr := m.retireAll(0); retireErr != nil {
		m.log.Error("retire dead proxies", "error", retireErr)
	}
	if err := m.startLauncher(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	for {
		if s, err = dial(ctx, m.opts.RunDir, connectTimeout); err == nil || !nobodyListens(err) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the proxy did not start (see %s): %w", logName, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func nobodyListens(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

// startLauncher starts a proxy that outlives this process.
func (m *Manager) startLauncher() error {
	if err := m.opts.makeRunDir(); err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Join(m.opts.RunDir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start the proxy: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(m.opts.Command[0], m.opts.Command[1:]...)
	cmd.Args[0] = os.Args[0] // the name people know it by
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the proxy: %w", err)
	}
	m.log.Info("started a proxy", "pid", cmd.Process.Pid)
	go func() {
		if err := cmd.Wait(); err != nil {
			m.log.Error("the proxy's launcher ended", "error", err)
		}
	}()
	return nil
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
		if m.opts.Record == nil {
			continue
		}
		for _, r := range batch.Records {
			record, rule := recordOf(r)
			m.opts.Record(record, rule)
		}
	}
}

// recordOf is the flow record of a request, and the rule that decided.
func recordOf(r *control.Record) (*flow.Record, uint32) {
	rec := &flow.Record{
		Time: time.Unix(0, r.Time), Layer: "L7", Verdict: flow.Dropped, Reason: r.Reason, Protocol: "TCP",
		Source: peerOf(r.Source, r.SourcePort, r.SourceIdentity),
		Dest:   peerOf(r.Destination, r.DestinationPort, r.DestinationIdentity),
		HTTP: &flow.HTTP{
			Method: string(r.Method), Host: string(r.Host), Path: string(r.Path), Protocol: r.Protocol,
			Status: int(r.Status), Latency: time.Duration(r.Latency),
		},
	}
	if r.Allowed {
		rec.Verdict = flow.Forwarded
	}
	rules := [2]uint32{}
	copy(rules[:], r.Rules)
	direction := policy.Direction(r.Judge)
	if r.Judge > 1 {
		switch r.Directions {
		case 1 << policy.Ingress:
			direction = policy.Ingress
		case 1 << policy.Egress:
			direction = policy.Egress
		default: // both ends
			if rules[policy.Egress] != 0 {
				return rec, rules[policy.Egress]
			}
			return rec, rules[policy.Ingress]
		}
	}
	rec.Direction = direction.String()
	return rec, rules[direction]
}

func peerOf(addr []byte, port, identity uint32) flow.Peer {
	a, _ := netip.AddrFromSlice(addr)
	return flow.Peer{Addr: a, Port: uint16(port), Identity: identity}
}

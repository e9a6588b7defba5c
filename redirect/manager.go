package redirect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

// RunDir is where a state has its sockets and logs.
func RunDir(state string) string { return filepath.Join("/run/weir", state) }

// Options of a Manager.
type Options struct {
	// State names what this node's Weir owns, "weir" by default.
	State string
	// RunDir is RunDir(State) by default.
	RunDir string
	// Datapath are the node's programs and tables.
	Datapath *bpf.Datapath
	// Command starts a launcher (see Launch) for the run directory, where none
	// runs. By default this very binary: weir proxy --state STATE, which logs
	// to proxy.log in the run directory.
	Command []string
	// MTU is the largest of any pod, 1500 by default. See SetMTU.
	MTU int
	// Record is told of every request the proxy judged, in order, and of the
	// number of the rule that decided (0: none). It must not block for long:
	// the proxy drops what it can't send.
	Record func(r *flow.Record, rule uint32)
	// DNS is how the proxy learns names; nil: its defaults.
	DNS *control.DNSSettings
	Log *slog.Logger
}

// Manager keeps a proxy running and joined to the node.
type Manager struct {
	opts Options
	log  *slog.Logger

	sending sync.Mutex // held while rule sets go to the proxy, so that none overtakes another

	mu      sync.Mutex
	sets    map[uint32]*policy.RuleSet // all that are to be in force
	synced  bool                       // sets is complete
	mtu     int
	session *session // with the proxy that is wired; nil: none
	// complete is closed when sets is.
	complete chan struct{}
}

// NewManager makes a Manager; Run makes it work.
func NewManager(o Options) *Manager {
	if o.State == "" {
		o.State = "weir"
	}
	if o.RunDir == "" {
		o.RunDir = RunDir(o.State)
	}
	if o.Command == nil {
		o.Command = []string{"/proc/self/exe", "proxy", "--state", o.State, "--log-file", filepath.Join(o.RunDir, logName)}
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{
		opts: o, log: o.Log, mtu: o.MTU,
		sets: make(map[uint32]*policy.RuleSet), complete: make(chan struct{}),
	}
}

// How long is waited for what, and how often the proxy's interface is looked
// at.
const (
	connectTimeout = 10 * time.Second
	callTimeout    = 10 * time.Second
	watchEvery     = time.Second
)

// Run finds a running proxy or starts one, joins it to the node, and does so
// anew whenever it dies. It returns when ctx ends, and leaves the proxy
// running and wired.
func (m *Manager) Run(ctx context.Context) error {
	delay, said := firstDelay, ""
	for {
		err := m.live(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errProxyEnded) {
			m.log.Error("no proxy", "error", err)
			delay, said = firstDelay, ""
			continue
		}
		// Something is wrong that does not go away by trying hard.
		if err.Error() != said {
			said = err.Error()
			m.log.Error("no proxy", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		delay = min(delay*2, longestWait)
	}
}

// errProxyEnded: the connection to a proxy that worked has ended.
var errProxyEnded = errors.New("the proxy has ended")

// live goes from a connection to the end of it.
func (m *Manager) live(ctx context.Context) error {
	s, err := m.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if err := m.join(ctx, s); err != nil {
		if hangs(err) {
			m.endHanging()
		}
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- m.receive(ctx, s) }()
	go m.guard(ctx, s)
	defer m.setSession(nil)
	if err := m.makeCurrent(ctx, s, ended); err != nil {
		return err
	}
	return m.watch(ctx, s, ended)
}

// watch returns when the proxy has ended, or what joins it to the node is gone.
func (m *Manager) watch(ctx context.Context, s *session, ended <-chan error) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return fmt.Errorf("%w: %w", errProxyEnded, err)
		case <-tick.C:
		}
		v, err := findVeth(m.opts.State, s.generation)
		if err == nil && v.index != int(s.entry.Ifindex) {
			err = fmt.Errorf("interface %d is now %d", s.entry.Ifindex, v.index)
		}
		if err != nil {
			return fmt.Errorf("the proxy is cut off: %w", err)
		}
	}
}

// makeCurrent gives the proxy the rule sets and then, if it is new, the new
// flows. A new one waits until all rule sets are known: flows wait with it,
// where they would be denied for want of them.
func (m *Manager) makeCurrent(ctx context.Context, s *session, ended <-chan error) error {
	for {
		m.sending.Lock()
		request, complete := m.allSets()
		err := m.send(ctx, s, request)
		if err == nil {
			m.setSession(s)
		}
		m.sending.Unlock()
		if err != nil {
			return err
		}
		ready := s.adopted || request.Replace
		if ready {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return fmt.Errorf("%w: %w", errProxyEnded, err)
		case <-complete:
		}
	}
	if err := m.opts.Datapath.Proxies.Update(uint32(s.generation), s.entry); err != nil {
		return err
	}
	m.opts.Datapath.SetGeneration(s.generation)
	m.log.Info("proxy is current", "generation", s.generation, "adopted", s.adopted)
	if !s.adopted {
		m.forgetOthers(s.generation)
	}
	if err := m.removeOthers(s.generation); err != nil {
		m.log.Error("remove what is left of dead proxies", "error", err)
	}
	return nil
}

// allSets is what a proxy must be told that knows nothing yet, and a channel
// that is closed when all of them are known.
func (m *Manager) allSets() (*control.SetRuleSetsRequest, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	request := &control.SetRuleSetsRequest{Replace: m.synced}
	for _, set := range m.sets {
		request.Upsert = append(request.Upsert, control.RuleSetOf(set))
	}
	return request, m.complete
}

func (m *Manager) send(ctx context.Context, s *session, request *control.SetRuleSetsRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := s.client.SetRuleSets(ctx, request)
	if err != nil {
		return fmt.Errorf("send rule sets: %w", err)
	}
	for _, r := range answer.Rejected {
		m.log.Error("proxy rejects a rule set: it lets nothing pass", "id", r.Id, "error", r.Error)
	}
	return nil
}

// SetRuleSets adds rule sets, and then removes those with the numbers in
// remove. It
// returns when a running proxy has them, or at once when none runs: one gets
// them before it is made current. Calls may be concurrent; they are carried
// out one after the other.
func (m *Manager) SetRuleSets(ctx context.Context, upsert []*policy.RuleSet, remove []uint32) error {
	m.sending.Lock()
	defer m.sending.Unlock()
	request := &control.SetRuleSetsRequest{Delete: remove}
	m.mu.Lock()
	for _, set := range upsert {
		m.sets[set.ID] = set
		request.Upsert = append(request.Upsert, control.RuleSetOf(set))
	}
	for _, id := range remove {
		delete(m.sets, id)
	}
	s := m.session
	m.mu.Unlock()
	if len(upsert)+len(remove) == 0 {
		return nil
	}
	return m.sendIfRunning(ctx, s, request)
}

// Synced says that the rule sets given so far are all there are: those that a
// predecessor left in the proxy are removed from it, and a proxy that was
// started since may be made current. To be called once, when the kernel's
// tables speak of no other sets.
func (m *Manager) Synced(ctx context.Context) error {
	m.sending.Lock()
	defer m.sending.Unlock()
	m.mu.Lock()
	if !m.synced {
		m.synced = true
		close(m.complete)
	}
	s := m.session
	m.mu.Unlock()
	request, _ := m.allSets()
	return m.sendIfRunning(ctx, s, request)
}

// sendIfRunning sends to the proxy of s, if there is one. One that has died
// meanwhile is as none: its successor gets all there is.
func (m *Manager) sendIfRunning(ctx context.Context, s *session, request *control.SetRuleSetsRequest) error {
	if s == nil {
		return nil
	}
	err := m.send(ctx, s, request)
	if s.ended() || status.Code(err) == codes.Unavailable {
		return nil
	}
	return err
}

func (m *Manager) setSession(s *session) {
	m.mu.Lock()
	m.session = s
	m.mu.Unlock()
}

// Status asks the running proxy how it is. ErrNoProxy: none is wired.
func (m *Manager) Status(ctx context.Context) (*control.StatusResponse, error) {
	m.mu.Lock()
	s := m.session
	m.mu.Unlock()
	if s == nil {
		return nil, ErrNoProxy
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := s.client.Status(ctx, &control.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the proxy: %w", err)
	}
	return answer, nil
}

// ErrNoProxy says that no proxy is running, or none is wired yet.
var ErrNoProxy = errors.New("no proxy is running")

// makeRunDir makes the run directory.
func (o *Options) makeRunDir() error {
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	return nil
}

// openCheckpoint opens a file in the run directory for the proxy, which can't
// open any, to keep there what its successors shall know. It is never read here.
func (o *Options) openCheckpoint(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(o.RunDir, name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint for the proxy: %w", err)
	}
	return f, nil
}

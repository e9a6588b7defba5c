package redirect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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
	// runs. By default Command(State, RunDir).
	Command []string
	// Build is BuildOf of what Command executes. A running proxy of another,
	// started by an agent, is replaced when Run finds it. "": none is.
	Build string
	// External: others start proxies, and their successors (a container beside
	// the agent's); Run starts none.
	External bool
	// Drain is how long a proxy that was replaced may go on with what it is in
	// the middle of: an hour by default.
	Drain time.Duration
	// MTU is the largest of any pod, 1500 by default. See SetMTU.
	MTU int
	// Record is told of every request the proxy judged, in order, and of the
	// number of the rule that decided (0: none). It must not block for long:
	// the proxy drops what it can't send.
	Record func(r *flow.Record, rule uint32)
	// Cut is told how many connections a proxy reset as it ended, since the time
	// that they had was up. nil: nobody wants to know.
	Cut func(connections uint64)
	// DNS is how the proxy learns names; nil: its defaults.
	DNS *control.DNSSettings
	// NameSets is told of the combinations of toFQDNs selectors that addresses
	// have or need, by a text that stands for each: all there are, whenever they
	// are others. It must not block. nil: nobody wants to know.
	NameSets func(map[string]*policy.NameSet)
	Log      *slog.Logger
}

// Manager keeps a proxy running and joined to the node, and sees to it that one
// succeeds another (doc.go).
type Manager struct {
	opts Options
	log  *slog.Logger
	wake chan struct{} // 1 buffered: there is something to settle

	severed chan struct{} // closed when the proxies of other tables have ended

	sending sync.Mutex // held while rule sets go to the proxies, so that none overtakes another

	mu      sync.Mutex
	sets    map[uint32]*policy.RuleSet // all that are to be in force
	synced  bool                       // sets is complete
	mtu     int
	fed     []*session // with proxies that have the rule sets, and get all changes
	current *session   // with the proxy that takes the new flows; nil: none is wired
	watches map[int]*watch
	// tampered is what others did to the programs.
	tampered Tampered

	names names

	settling // of Run alone
}

// settling is what Run keeps from one look at the proxies to the next.
type settling struct {
	attending sync.WaitGroup
	launch    *launch       // of the launcher that was started last, until it has a place
	delay     time.Duration // between one that failed and the next
	launchAt  time.Time
	upgraded  bool                // one of this binary was started
	checked   time.Time           // when the programs were looked at
	unheld    map[uint8]time.Time // generations that no proxy has connections of, since when
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
		o.Command = Command(o.State, o.RunDir)
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Drain == 0 {
		o.Drain = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{
		opts: o, log: o.Log, mtu: o.MTU, wake: make(chan struct{}, 1), severed: make(chan struct{}),
		sets: make(map[uint32]*policy.RuleSet), watches: make(map[int]*watch),
		names:    names{wants: make(map[*session][]*policy.NameSet)},
		settling: settling{unheld: make(map[uint8]time.Time)},
	}
}

// Command starts a launcher of this very binary for a state, which logs to
// proxy.log in the run directory.
func Command(state, runDir string) []string {
	return []string{"/proc/self/exe", "proxy", "--state", state, "--managed", "--log-file", LogPath(runDir)}
}

// How long a proxy may take to answer.
const (
	connectTimeout = 10 * time.Second
	callTimeout    = 10 * time.Second
)

// allSets is what a proxy must be told that knows nothing yet; whether that is
// all there is to know.
func (m *Manager) allSets() (_ *control.SetRuleSetsRequest, complete bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	request := &control.SetRuleSetsRequest{Replace: m.synced}
	for _, set := range m.sets {
		request.Upsert = append(request.Upsert, control.RuleSetOf(set))
	}
	return request, m.synced
}

// feed gives a proxy all rule sets and names; from then on it gets every change.
func (m *Manager) feed(ctx context.Context, s *session) error {
	m.names.turn.Lock()
	defer m.names.turn.Unlock()
	m.sending.Lock()
	defer m.sending.Unlock()
	request, _ := m.allSets()
	if err := m.send(ctx, s, request); err != nil {
		return err
	}
	if err := m.feedNames(ctx, s); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !s.ended() { // or it would never be forgotten: starve has been
		m.fed = append(m.fed, s)
	}
	return nil
}

// starve forgets a session that has ended.
func (m *Manager) starve(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fed = slices.DeleteFunc(m.fed, func(f *session) bool { return f == s })
	if m.current == s {
		m.current = nil
	}
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
// remove. It returns when the running proxies have them, or at once when none
// runs: one gets them before it is made current. Calls may be concurrent; they
// are carried out one after the other.
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
	m.mu.Unlock()
	if len(upsert)+len(remove) == 0 {
		return nil
	}
	return m.sendAll(func(s *session) error { return m.send(ctx, s, request) })
}

// Synced says that the rule sets given so far are all there are: those that a
// predecessor left in a proxy are removed from it, and a proxy that was started
// since may be made current. To be called once, when the kernel's tables speak
// of no other sets.
func (m *Manager) Synced(ctx context.Context) error {
	m.sending.Lock()
	defer m.sending.Unlock()
	m.mu.Lock()
	m.synced = true
	m.mu.Unlock()
	request, _ := m.allSets()
	err := m.sendAll(func(s *session) error { return m.send(ctx, s, request) })
	m.rouse()
	return err
}

// sendAll calls send for every proxy that is fed. One that has died meanwhile is
// as none: its successor gets all there is. Nor does one that is replaced hold up
// the others; what it does not know it denies.
func (m *Manager) sendAll(send func(*session) error) error {
	m.mu.Lock()
	fed, newest := slices.Clone(m.fed), 0
	m.mu.Unlock()
	for _, s := range fed {
		newest = max(newest, s.place.n)
	}
	failed := make([]error, len(fed))
	var all sync.WaitGroup
	for i, s := range fed {
		all.Go(func() {
			err := send(s)
			switch {
			case err == nil, s.ended(), status.Code(err) == codes.Unavailable:
			case s.place.n < newest:
				m.log.Error("a replaced proxy does not take what it is sent", "generation", s.generation, "error", err)
			default:
				failed[i] = err
			}
		})
	}
	all.Wait()
	return errors.Join(failed...)
}

// Status asks the proxy that takes the new flows how it is, or the one that is
// about to. ErrNoProxy: none is wired.
func (m *Manager) Status(ctx context.Context) (*control.StatusResponse, error) {
	_, answer, err := m.Current(ctx)
	return answer, err
}

// Current is Status with the place of the proxy that answers (Start), 0 if it
// does not have the new flows yet.
func (m *Manager) Current(ctx context.Context) (place int, _ *control.StatusResponse, _ error) {
	s, _ := m.proxies()
	if s == nil {
		return 0, nil, ErrNoProxy
	}
	m.mu.Lock()
	if m.current == s {
		place = s.place.n
	}
	m.mu.Unlock()
	answer, err := s.ask(ctx, callTimeout)
	return place, answer, err
}

// Replaced asks the proxies that were replaced and have not ended how they are,
// the latest first. Those that don't answer are left out.
func (m *Manager) Replaced(ctx context.Context) []*control.StatusResponse {
	_, old := m.proxies()
	answers := make([]*control.StatusResponse, len(old))
	var all sync.WaitGroup
	for i, s := range old {
		all.Go(func() { answers[i], _ = s.ask(ctx, callTimeout) }) // left out
	}
	all.Wait()
	return slices.DeleteFunc(answers, func(r *control.StatusResponse) bool { return r == nil })
}

// proxies are the one that counts, nil if there is none, and those before it,
// the latest first.
func (m *Manager) proxies() (main *session, old []*session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	main = m.current
	for _, s := range m.fed {
		if m.current == nil && (main == nil || s.place.n > main.place.n) {
			main = s
		}
	}
	for _, s := range m.fed {
		if s.place.n < main.place.n {
			old = append(old, s)
		}
	}
	slices.SortFunc(old, func(a, b *session) int { return cmp.Compare(b.place.n, a.place.n) })
	return main, old
}

// ErrNoProxy says that no proxy is running, or none is wired yet.
var ErrNoProxy = errors.New("no proxy is running")

// openCheckpoint opens a file in the run directory for the proxy, which can't
// open any, to keep there what its successors shall know. It is never read here.
func (o *Options) openCheckpoint(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(o.RunDir, name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint for the proxy: %w", err)
	}
	return f, nil
}

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// ServicesOptions are those of Services.
type ServicesOptions struct {
	// Kernel is nil where services are not translated; Why tells the reason then.
	Kernel *bpf.Services
	Why    string
	// Cgroup is the one (v2) of the pods' processes: "" finds kubelet's, or else
	// takes the whole hierarchy.
	Cgroup string
	// Probe is a command that calls bpf.ProbeHere, see bpf.ProbeServices.
	Probe []string
	// Pods are this node's; nil: nobody looks whether their processes are in the
	// cgroup.
	Pods func() []EndpointStatus
	Log  *slog.Logger
}

// Services keeps the kernel's translation of services as the objects have it. A
// Manager gives it what changes; one goroutine, Run, does all the rest. All of it
// may be missing without any harm to policy: kube-proxy does what is left.
type Services struct {
	opts ServicesOptions
	log  *slog.Logger
	wake chan struct{} // 1 buffered: changes are released

	mu       sync.Mutex
	services map[policy.Frontend]*policy.Backends // changes, not folded yet
	nodes    map[netip.Addr]bool
	released bool // they may be folded
	whole    bool // all objects were in once
	shown    ServicesStatus

	// busy is since when the manager computes or writes (UnixNano); 0: it waits.
	busy atomic.Int64

	// Of Run alone.
	tables    *serviceTables
	swept     bool // sockets of backends that went before this agent were looked for
	attached  string
	looked    time.Time // when it was last looked where it is attached
	probed    error
	destroyer destroyer
}

const (
	// pulse is how often the kernel is told that the tables are kept.
	pulse = time.Second
	// stuckAfter is how long the manager may be about one thing: then nobody knows
	// how old the tables are. A rule set that the proxy does not take makes it wait
	// for half of that.
	stuckAfter = time.Minute
	// relook is how often it is looked whether pods are in the cgroup.
	relook = 30 * time.Second
)

// NewServices adopts what a predecessor left.
func NewServices(o ServicesOptions) (*Services, error) {
	s := &Services{
		opts: o, log: o.Log, wake: make(chan struct{}, 1),
		services: map[policy.Frontend]*policy.Backends{}, nodes: map[netip.Addr]bool{},
		shown: ServicesStatus{Why: o.Why},
	}
	if o.Kernel == nil {
		return s, nil
	}
	s.shown.Why = "the first read of all objects is not in"
	k := o.Kernel
	s.tables = newServiceTables(serviceKernel{k.Services, k.Backends, k.Members, k.Nodes})
	s.destroyer.kernel = k
	if err := s.tables.adopt(); err != nil {
		return nil, fmt.Errorf("adopt tables of services: %w", err)
	}
	return s, nil
}

// note takes changes over; they count from the next release on. s may be nil, as
// for release and working.
func (s *Services) note(d policy.Delta) {
	if s == nil || s.tables == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.services, d.Services)
	maps.Copy(s.nodes, d.NodeAddresses)
}

// release says that the kernel knows who the backends are that were noted; whole
// that all objects are in, which counts from the first time on.
func (s *Services) release(whole bool) {
	if s == nil || s.tables == nil {
		return
	}
	s.mu.Lock()
	s.whole = s.whole || whole
	s.released = s.whole
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// working tells whether the manager computes or writes, or waits.
func (s *Services) working(now bool) {
	switch {
	case s == nil:
	case now:
		s.busy.CompareAndSwap(0, time.Now().UnixNano())
	default:
		s.busy.Store(0)
	}
}

// Run translates until ctx is done, and leaves it to a successor then: if none
// says that it is there, the programs step aside after bpf.ServicesStaleAfter.
func (s *Services) Run(ctx context.Context) error {
	if s.tables == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	var failed error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.wake:
		}
		failed = s.pass(failed)
	}
}

// pass writes what there is to write, attaches, and says so. before is what went
// wrong last time.
func (s *Services) pass(before error) error {
	s.mu.Lock()
	released := s.released
	var services map[policy.Frontend]*policy.Backends
	var nodes map[netip.Addr]bool
	if released {
		services, nodes = s.services, s.nodes
		s.services, s.nodes, s.released = map[policy.Frontend]*policy.Backends{}, map[netip.Addr]bool{}, false
	}
	whole := s.whole
	s.mu.Unlock()
	if !whole {
		return nil
	}
	var err error
	if released || before != nil {
		s.tables.fold(services, nodes)
		var gone []bpf.Member
		gone, err = s.tables.realise()
		s.destroyer.later(gone)
	}
	if err == nil && !s.swept {
		s.sweep()
	}
	err = errors.Join(err, s.place())
	busy := s.stuck()
	if err == nil && busy == "" {
		s.opts.Kernel.Alive()
	}
	if err != nil && (before == nil || before.Error() != err.Error()) {
		s.log.Error("services are left to kube-proxy if this lasts; trying again", "error", err)
	}
	s.destroyer.run(s.log)
	s.show(err, busy)
	return err
}

// sweep notes the backends that sockets were sent to and that are none any more,
// though nobody saw them go: a predecessor may have ended between a row and its
// sockets.
func (s *Services) sweep() {
	gone, err := orphans(s.opts.Kernel.Reverse.Scan, s.tables.members.have)
	if err != nil {
		s.log.Warn("whether sockets are connected to backends that went is not known; looking again", "error", err)
		return
	}
	s.destroyer.later(gone)
	s.swept = true
}

// stuck tells why the tables may be older than they seem; "" if they are not.
func (s *Services) stuck() string {
	since := s.busy.Load()
	if since == 0 {
		return ""
	}
	if d := time.Since(time.Unix(0, since)); d > stuckAfter {
		return fmt.Sprintf("the agent has been busy with one thing for %v", d.Round(time.Second))
	}
	return ""
}

// place attaches the programs where pods are, and looks now and then whether they
// still are where they should be.
func (s *Services) place() error {
	if s.attached != "" && time.Since(s.looked) < relook {
		return nil
	}
	cgroup := s.opts.Cgroup
	if cgroup == "" {
		var err error
		if cgroup, err = findPods(); err != nil {
			return err
		}
	}
	on, err := s.opts.Kernel.Attached(cgroup)
	if err != nil {
		return err
	}
	fresh := s.attached != cgroup || !on
	if fresh {
		if s.attached == cgroup {
			s.log.Error("somebody took Weir's programs off the pods' sockets; attaching them again", "cgroup", cgroup)
		}
		if err := s.opts.Kernel.Attach(cgroup); err != nil {
			s.attached = ""
			return err
		}
		s.attached = cgroup
		s.opts.Kernel.Alive() // or the probe would find them aside
		s.log.Info("services are translated", "cgroup", cgroup)
	}
	if len(s.opts.Probe) > 0 && (fresh || s.probed != nil) {
		was := s.probed
		if s.probed = bpf.ProbeServices(cgroup, s.opts.Probe...); s.probed != nil && was == nil {
			s.log.Error("services are not translated", "cgroup", cgroup, "error", s.probed)
		}
	}
	s.lookForPods()
	s.looked = time.Now()
	return nil
}

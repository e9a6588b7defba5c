package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"sync"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// Options of a Manager.
type Options struct {
	Node     string
	Datapath *bpf.Datapath
	RuleSets RuleSets
	// Names takes names to the proxy, and Manager.NameSets is told what it wants;
	// nil: there is nobody who learns names.
	Names Names
	// Resolvers are servers whose answers are believed besides the cluster's. It
	// is called often. nil: none are.
	Resolvers func() []policy.Server
	Veths     *Veths
	// Inhabitants tells of whose processes are behind veths; nil: nobody does.
	Inhabitants *Inhabitants
	// Failsafe is what policies for nodes are not asked about. HostDevices, if not
	// nil, matches the names of the interfaces where those are enforced; else it is
	// where HostDevices finds the node joined to networks.
	Failsafe    []policy.Failsafe
	HostDevices *regexp.Regexp
	// Services is told what becomes of services; nil: nobody translates them.
	Services *Services
	// BeforeActivate returns when a predecessor's programs may be replaced; nil: at
	// any time.
	BeforeActivate func()
	// MTU is told the largest of the pods' veths, whenever it changes.
	MTU func(int) error
	// Complete tells whether the source has everything it was given: until
	// then nothing that a predecessor left is taken away. It is asked at every
	// Submit, which may be empty to say that the answer is another now. nil:
	// always.
	Complete func() bool
	Log      *slog.Logger
	Metrics  *Metrics
}

// Manager keeps the policy of this node's pods realised in the kernel: it
// takes changes of objects (Submit), watches for the pods' veths, and writes
// the tables. One goroutine, Run, does all of it.
type Manager struct {
	node      string
	log       *slog.Logger
	veths     *Veths
	metrics   *Metrics
	complete  func() bool
	tellMTU   func(int) error
	services  *Services
	inherited bool
	submits   chan submit
	waits     chan chan error
	announces chan announceCall
	wants     wants
	// inhabitants is nil where nobody looks.
	inhabitants *Inhabitants

	// Of Run alone.
	r *realiser
	// scanned: the veths that were there from the start are known. freshStrangers:
	// there is one whose time to become known runs.
	scanned, freshStrangers bool
	announced               announcements
	announceCalls           []announceCall
	mtu                     int // last told
	mtuTurn                 sync.Mutex
	started                 bool // the first changes are in
	passes                  int
	// whole: the source had everything when it last submitted; seedless: the
	// numbers that nothing stands for were taken from the engine then.
	whole, seedless bool
	// heard: the proxy has said which combinations of names it needs, or was
	// waited for long enough; needs are those.
	heard bool
	needs map[string]*policy.NameSet
	// host are the node's own addresses, once they are known.
	host      []netip.Addr
	hostKnown bool
	resolvers []policy.Server // that the node asks itself
	// hostChanges counts changes of host; hostSeen and hostLooked say when the
	// node's interfaces were looked at, those of hostPattern.
	hostChanges, hostSeen int
	hostLooked            time.Time
	hostPattern           *regexp.Regexp
	// checked is when the kernel was asked last which programs are attached.
	checked time.Time
	// applyErr is what of the last changes made no sense.
	applyErr error
	lost     LostPrograms
	// Where programs of others run before ours, and could not be overtaken.
	overtaken OvertakenPrograms
	behind    map[int]bool

	// mu guards what readers of flows and status see: these, and of r what
	// fold writes.
	mu     sync.Mutex
	engine *policy.Engine
	names  names
	labels map[uint32][]string // by identity, of the present engine state
	// icmpTypes are their own indexes: what records point to.
	icmpTypes [256]uint8
	shown     Status
	// unannounced tells what stands in the way of pods that were announced.
	unannounced map[policy.PodName]string
}

type submit struct {
	changes []policy.Change
	answer  chan error
}

const (
	// settle gathers events that come together.
	settle = time.Millisecond
	// Retries after an error start at the first and end at the second.
	retryFirst, retryLast = 50 * time.Millisecond, 5 * time.Second
	// activateAfter so many passes our programs take over though there are errors.
	activateAfter = 5
	// rescan finds veths whose events were missed: often while a pod waits.
	rescan, rescanWaiting = 30 * time.Second, time.Second
	// recheck is how long programs are taken to be where they were put.
	recheck = rescan / 2
)

// New adopts what is pinned; nothing is changed before the first Submit.
func New(o Options) (*Manager, error) {
	k := kernelOf(o.Datapath)
	if o.BeforeActivate != nil {
		k.activate = func() error {
			o.BeforeActivate()
			return o.Datapath.Activate()
		}
	}
	return newManager(o, k)
}

func newManager(o Options, k kernel) (*Manager, error) {
	r := newRealiser(k, o.RuleSets)
	r.nameSets.proxy = o.Names
	if o.Resolvers != nil {
		r.nameSets.others = o.Resolvers
	}
	seeds, err := r.adopt()
	if err != nil {
		return nil, fmt.Errorf("adopt tables: %w", err)
	}
	engine, err := policy.NewEngine(policy.Options{NodeName: o.Node, Seeds: seeds, Failsafe: o.Failsafe})
	if err != nil {
		return nil, err
	}
	m := &Manager{
		node: o.Node, log: o.Log, veths: o.Veths, metrics: o.Metrics, complete: o.Complete, tellMTU: o.MTU, services: o.Services,
		submits: make(chan submit), waits: make(chan chan error),
		announces: make(chan announceCall), announced: announcements{}, unannounced: map[policy.PodName]string{},
		r: r, engine: engine, names: newNames(), labels: map[uint32][]string{},
		wants: newWants(), heard: o.Names == nil, hostPattern: o.HostDevices, inhabitants: o.Inhabitants,
	}
	// Programs of another version have tables of their own.
	m.inherited = len(r.attached)+len(r.policies.have) > 0
	r.unguarded = m.metrics.noteUnguarded
	for i := range m.icmpTypes {
		m.icmpTypes[i] = uint8(i)
	}
	if m.complete == nil {
		m.complete = func() bool { return true }
	}
	m.show(nil, 0)
	return m, nil
}

// Inherited tells whether New found anything in force.
func (m *Manager) Inherited() bool { return m.inherited }

// Submit takes changes: everything there is with the first call, differences
// then. It returns when they are taken over, before they are realised (Wait).
func (m *Manager) Submit(ctx context.Context, changes []policy.Change) error {
	s := submit{changes, make(chan error, 1)}
	select {
	case m.submits <- s:
		return <-s.answer
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wait returns when everything submitted before is realised, for the veths
// that are there now; if ctx ends before, with what stands in the way.
func (m *Manager) Wait(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case m.waits <- answer:
	case <-ctx.Done():
		return errors.New("the agent is busy")
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		if s := m.Status(); len(s.Errors) > 0 {
			return errors.New(s.Errors[0])
		} else if !s.Started {
			return errors.New("the first read of all objects is not in")
		}
		return ctx.Err()
	}
}

// Run realises until ctx is done, and leaves everything in force then.
func (m *Manager) Run(ctx context.Context) error {
	var waiting []chan error
	retry := retryFirst
	again := time.NewTimer(rescan)
	defer again.Stop()
	deaf := time.NewTimer(hearing)
	defer deaf.Stop()
	for {
		m.services.working(false)
		select {
		case <-ctx.Done():
			return nil
		case s := <-m.submits:
			m.services.working(true)
			m.apply(s)
		case w := <-m.waits:
			waiting = append(waiting, w)
			m.lookAgain()
		case c := <-m.announces:
			m.hear(c)
		case <-m.wants.changed:
			m.need(m.wants.take())
		case <-deaf.C:
			if m.heard {
				continue
			}
			m.log.Warn("the proxy does not say which names it knows: what it learned for a predecessor may be lost")
			m.need(nil)
		case found := <-m.inhabitants.results():
			m.sawInside(found)
		case <-m.veths.Changed():
			time.Sleep(settle)
		case <-again.C:
			if m.r.unattached == 0 {
				m.veths.Invalidate()
			}
		}
		m.services.working(true)
		m.takeMore(&waiting)
		if !m.started {
			continue
		}
		err := m.pass(ctx)
		next := rescan
		if m.waitingPods() > 0 || m.freshStrangers || len(m.announceCalls) > 0 {
			next = rescanWaiting
		}
		if err != nil {
			m.log.Error("policy is not fully realised; trying again", "error", err, "in", retry)
			next = min(retry, next)
			retry = min(2*retry, retryLast)
		} else if m.r.unattached > 0 {
			next = 0
		} else if m.heard {
			retry = retryFirst
			for _, w := range waiting {
				w <- nil
			}
			waiting = nil
		}
		again.Reset(next)
	}
}

// takeMore takes what else has come meanwhile, so that a burst is one pass.
func (m *Manager) takeMore(waiting *[]chan error) {
	for {
		select {
		case s := <-m.submits:
			m.apply(s)
		case w := <-m.waits:
			*waiting = append(*waiting, w)
			m.lookAgain()
		case c := <-m.announces:
			m.hear(c)
		case <-m.wants.changed:
			m.need(m.wants.take())
		case <-m.veths.Changed():
		default:
			return
		}
	}
}

func (m *Manager) apply(s submit) {
	m.started = true
	m.applyErr = m.compute(s.changes)
	s.answer <- nil
}

// evaluate has the engine compute what changes mean, and tells all who write tables;
// with an error, too: only what made no sense is left out. m.mu is held.
func (m *Manager) evaluate(changes ...policy.Change) error {
	delta, err := m.engine.Apply(changes)
	m.r.fold(delta)
	m.services.note(delta)
	return err
}

// compute finds out what the tables are to say after changes. An error tells
// what of them made no sense.
func (m *Manager) compute(changes []policy.Change) error {
	start := time.Now()
	m.mu.Lock()
	err := m.evaluate(changes...)
	// Asked now: it speaks of what has just been taken over.
	m.whole = m.started && m.heard && m.complete()
	if m.whole && !m.seedless {
		// Before, what is read yet may be what a predecessor's number stands for.
		m.engine.DropUnusedSeeds()
		m.seedless, err = true, errors.Join(err, m.evaluate())
	}
	m.names.apply(changes)
	clear(m.labels)
	m.mu.Unlock()
	m.log.Debug("computed policy", "changes", len(changes), "took", time.Since(start))
	if err != nil {
		m.metrics.errors.WithLabelValues("policy").Inc()
		m.log.Error("some objects do not count", "error", err)
		return fmt.Errorf("compute policy: %w", err)
	}
	return nil
}

// pass looks at the veths and brings the kernel up to date.
func (m *Manager) pass(ctx context.Context) error {
	start := time.Now()
	// Before the veths are listed: programs that go with theirs are not missed.
	var attached map[int]bool
	var checkErr error
	if start.Sub(m.checked) >= recheck {
		if attached, checkErr = m.r.readAttached(); checkErr == nil {
			m.checked = start
		}
	}
	veths, scanErr := m.veths.Scan()
	if veths != nil {
		m.r.veths = veths
	}
	hostErr := m.followHost()
	m.lookInside()
	m.r.place()
	m.announced.expire(start, m.r.pods)
	hostErr = errors.Join(hostErr, m.followStrangers(start))
	m.askInside(start)
	var overtaken map[int]string
	lost, lookErr := m.lookAtHost(attached != nil)
	m.noteLostHost(lost)
	hostErr = errors.Join(hostErr, lookErr)
	if attached != nil && veths != nil {
		m.noteLost(m.r.dropLost(attached))
		overtaken, checkErr = m.r.dropOvertaken()
	}
	m.updateMTU()
	// Before the node's addresses are known, those of them that a predecessor
	// wrote must not become the world's.
	err := errors.Join(checkErr, hostErr, m.r.realise(ctx, m.whole && m.hostKnown))
	if attached != nil && veths != nil {
		err = errors.Join(err, m.noteOvertaken(overtaken))
	}
	// What can't be written or attached for long must not keep the rest with a
	// predecessor's programs.
	if m.passes++; err == nil || m.passes > activateAfter {
		err = errors.Join(err, m.r.activate())
	}
	// Now that the kernel knows who the backends are.
	m.services.release(m.whole)
	m.answerAnnounced()
	took := time.Since(start)
	m.metrics.realise.Observe(took.Seconds())
	if err != nil {
		m.metrics.errors.WithLabelValues("realise").Inc()
	}
	if scanErr != nil {
		// A namespace that can't be read is as a pod without a veth, which is
		// shown; it must not hold up the others.
		m.log.Warn("looking for pods' veths", "error", scanErr)
	}
	m.log.Debug("realised", "took", took, "revision", m.r.k.revision())
	m.show(errors.Join(m.applyErr, err), took)
	return err
}

// lookAgain makes the next pass trust nothing it saw before.
func (m *Manager) lookAgain() {
	m.veths.Invalidate()
	m.checked = time.Time{}
}

// noteLost tells of programs that are not where they were put. They are attached
// again in this pass; until then nothing was enforced there.
func (m *Manager) noteLost(lost []int) {
	for _, index := range lost {
		name := m.r.veths[index].Name
		m.lost.Count++
		m.lost.At, m.lost.Interface = time.Now(), name
		m.metrics.lost.Inc()
		m.log.Error("somebody took Weir's programs off a pod's interface: nothing was enforced there; attaching them again",
			"interface", name, "ifindex", index)
	}
}

func (m *Manager) updateMTU() {
	largest := 0
	for _, index := range m.r.placed {
		largest = max(largest, m.r.veths[index].MTU)
	}
	if largest == 0 || largest == m.mtu || !m.mtuTurn.TryLock() {
		return
	}
	m.mtu = largest
	go func() { // the proxy may not answer
		defer m.mtuTurn.Unlock()
		if err := m.tellMTU(largest); err != nil {
			m.log.Warn("setting the MTU towards the proxy", "mtu", largest, "error", err)
		}
	}()
}

func (m *Manager) waitingPods() int { return len(m.r.pods) - len(m.r.placed) }

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
	"github.com/weirnet/weir/proxy/dns"
	"github.com/weirnet/weir/proxy/http"
)

// wired is what a proxy has once an agent has joined it to the node.
type wired struct {
	generation uint8
	maps       mapIDs
	listeners  []*net.TCPListener
	steering   *ebpf.Map // the listeners' sockmap
	data       *dataSide

	names *names
	dns   atomic.Pointer[control.DNSSettings] // nil: the defaults
}

// refuse takes no SYNs and no questions any more: they are dropped, and their
// repeats meet the next proxy. It may be repeated.
func (w *wired) refuse() {
	for i := range bpf.Listeners {
		_ = w.steering.Delete(i)
	}
}

// meet hears an agent out. It takes over from the one before once the two
// have agreed.
func (p *process) meet(c *net.UnixConn) {
	log := p.log
	if err := p.preface(c); err != nil {
		if errors.Is(err, errDone) {
			log.Info("an agent asked for something", "error", err)
		} else {
			log.Error("agent refused", "error", err)
		}
		_ = c.Close()
		return
	}
	log.Info("agent connected")
	server := p.newServer()
	p.agent.replace(server)
	err := control.Serve(server, c)
	p.agent.gone(server)
	log.Info("agent gone", "error", err)
}

// preface exchanges descriptors with an agent, and wires the proxy if that
// was not done yet.
func (p *process) preface(c *net.UnixConn) error {
	if err := c.SetDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return err
	}
	if err := checkPeer(c); err != nil {
		return err
	}
	welcome := &control.Welcome{
		Protocol: control.Protocol, Version: p.opts.Version, Boot: p.boot,
		Build: p.opts.Build, Managed: p.opts.Managed,
	}
	if w := p.wired.Load(); w != nil {
		welcome.Generation = uint32(w.generation)
	}
	if err := control.Send(c, welcome, p.opts.Netns); err != nil {
		return err
	}
	wiring := &control.Wiring{}
	files, err := control.Receive(c, wiring)
	if err != nil {
		return err
	}
	defer control.Close(files)
	answer := &control.Wired{}
	if wiring.Stop {
		p.departure.ask(leave{timeout: time.Duration(wiring.Drain), restart: wiring.Restart})
		return errors.Join(control.Send(c, answer), errDone)
	}
	if wiring.HandOver || wiring.TakeOver {
		err := p.bridge(wiring, files)
		if err != nil {
			answer.Error = err.Error()
		}
		return errors.Join(control.Send(c, answer), err, errDone)
	}
	wireErr := p.wire(wiring, files)
	if wireErr != nil {
		answer.Error = wireErr.Error()
		answer.Stale = errors.Is(wireErr, errStale)
	}
	if err := control.Send(c, answer); err != nil {
		return err
	}
	if wireErr != nil {
		return wireErr
	}
	return c.SetDeadline(time.Time{})
}

// errDone: the agent wanted nothing else.
var errDone = errors.New("done as asked")

// learnedTimeout is how long a predecessor may take to tell what it learned.
const learnedTimeout = prefaceTimeout - 2*time.Second

// bridge connects this proxy to a successor, or to a predecessor.
func (p *process) bridge(m *control.Wiring, files []*os.File) error {
	w := p.wired.Load()
	if w == nil || len(files) != 1 {
		return fmt.Errorf("connect to another proxy: %d descriptors, wired: %v", len(files), w != nil)
	}
	c, err := unixConn(files[0])
	if err != nil {
		return err
	}
	// Nobody waits for another process when this one has ended.
	context.AfterFunc(p.ctx, func() { _ = c.Close() })
	d := w.data
	if m.HandOver {
		h := d.handTo(c)
		p.group.Go(func() error { d.serveHeir(h, p.boot, w.names); return nil })
		p.log.Info("there is a successor")
		return nil
	}
	r := d.takeOver(c, w.names)
	p.group.Go(func() error { r.run(); return nil })
	select {
	case <-r.ready:
	case <-time.After(learnedTimeout):
		p.log.Error("what a predecessor learned is not in yet")
	case <-p.ctx.Done():
	}
	p.log.Info("there is a predecessor")
	return nil
}

// errStale: wired already, with other tables or as another generation.
var errStale = errors.New("wired otherwise before")

// wire joins the proxy to the node, or checks that it already is joined in
// the very way the agent wants.
func (p *process) wire(m *control.Wiring, files []*os.File) error {
	p.wiring.Lock()
	defer p.wiring.Unlock()
	maps, err := openMaps(m.Maps, files)
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		_ = maps.revision.Close()
		if !keep {
			maps.close()
		}
	}()
	ids, err := maps.ids()
	if err != nil {
		return err
	}
	if w := p.wired.Load(); w != nil {
		if uint32(w.generation) != m.Generation {
			return fmt.Errorf("generation %d: %w as %d", m.Generation, errStale, w.generation)
		}
		if ids != w.maps {
			return fmt.Errorf("tables %v: %w with %v", ids, errStale, w.maps)
		}
		settings, err := settingsOf(m.Dns)
		if err != nil {
			return err
		}
		w.dns.Store(m.Dns)
		w.names.Set(settings)
		w.data.questions.SetNXDomain(m.Dns.GetNxdomain())
		return configureNamespace(m.Gateway, int(m.Mtu))
	}
	if m.Generation == 0 || m.Generation > 255 {
		return fmt.Errorf("generation %d is out of range", m.Generation)
	}
	w, err := p.setUp(m, maps)
	if err != nil {
		return err
	}
	keep = true
	w.maps = ids
	p.wired.Store(w)
	p.log.Info("wired", "generation", m.Generation, "connections-max", w.data.max)
	return nil
}

// setUp makes the data side. Listeners come last: nothing reaches it before.
func (p *process) setUp(m *control.Wiring, maps *tables) (*wired, error) {
	if n := maps.listeners.MaxEntries(); n != bpf.Listeners {
		return nil, fmt.Errorf("the table of listeners has room for %d, not %d: the agent is of another version", n, bpf.Listeners)
	}
	settings, err := settingsOf(m.Dns)
	if err != nil {
		return nil, err
	}
	revisions, err := mapRevisions(maps.revision)
	if err != nil {
		return nil, err
	}
	if err := configureNamespace(net.HardwareAddr(m.Gateway), int(m.Mtu)); err != nil {
		return nil, err
	}
	congestion, err := hostCongestion()
	if err != nil {
		return nil, err
	}
	flows := &mapFlows{walker: walker[bpf.Tuple, bpf.Conn]{m: maps.conns}}
	most := min(flows.size(), maxPairs())
	d := &dataSide{
		log: p.log, generation: uint8(m.Generation), flows: flows, revisions: revisions,
		shares: &mapShares{walker: walker[uint32, bpf.Share]{m: maps.shares}, grants: maps.grants},
		sets:   p.sets, closed: http.Closed(), closedQuestions: dns.Closed(), server: p.server, records: p.records, counters: p.counters,
		max: most, share: max(most/podShare, 1), congestion: congestion, dial: dialAs,
		checkSocket: checkSocket, pairs: newPairTable(),
	}
	names := newNames(p.log, maps, settings)
	d.believed = names
	if d.questions, err = dns.New(dns.Options{
		Open: d.openAsks, Learner: names, Log: p.log,
		Drop: func(r dns.Reason, n uint64) { p.counters.denyMany(r.String(), n) },
	}); err != nil {
		return nil, err
	}
	d.questions.SetNXDomain(m.Dns.GetNxdomain())
	steering := maps.listeners
	listeners, err := openListeners(d.questions, func(index uint32, fd uintptr) error {
		return steering.Update(index, uint64(fd), ebpf.UpdateAny)
	})
	if err != nil {
		d.questions.Close()
		return nil, err
	}
	p.group.Go(func() error { return d.questions.Run(p.ctx) })
	for _, l := range listeners {
		p.group.Go(func() error { return d.accept(l) })
	}
	p.group.Go(func() error { newSweeper(d).run(p.ctx); return nil })
	p.group.Go(func() error {
		if err := names.Run(p.ctx); err != nil {
			p.log.Error("what names stand for is not kept", "error", err)
		}
		return nil
	})
	w := &wired{
		generation: uint8(m.Generation), listeners: listeners, steering: steering, data: d,
		names: names,
	}
	w.dns.Store(m.Dns)
	return w, nil
}

// podShare is the part of all connections that one pod may have: this one of so
// many.
const podShare = 4

// maxPairs is how many connections the limit of open files leaves room for: a
// pair has two sockets, and some have pipes for a while, which are done
// without when they can't be had. Questions by UDP get an eighth of all, besides
// those they come to.
func maxPairs() int {
	const others = 256 + uint64(bpf.Listeners)
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur <= 2*others {
		return 1
	}
	return int(min(l.Cur-others-l.Cur/8, 1<<24) / 2)
}

// checkPeer refuses peers of the proxy's own kind. Who may connect is decided
// by the socket's mode; in this user namespace root has no number of its own
// and is seen as one that is not mapped.
func checkPeer(c *net.UnixConn) error {
	user, err := control.PeerUser(c)
	if err != nil {
		return err
	}
	if user == uint32(os.Getuid()) {
		return errors.New("the peer is no agent but an unprivileged user")
	}
	return nil
}

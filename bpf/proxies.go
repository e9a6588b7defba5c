package bpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Keys of a proxy's listeners: its listening sockets, and the unconnected ones
// that datagrams of redirected flows come to. Of those each family has Lanes, from
// its key on; all that an address sends comes to one of them, and nobody knows
// beforehand to which. Listeners is how many keys there are: a table of another
// size is one of another version.
const (
	ListenerTCP4 uint32 = 0
	ListenerTCP6 uint32 = 1
	ListenerUDP4 uint32 = 2
	ListenerUDP6        = ListenerUDP4 + Lanes
	Listeners           = ListenerUDP6 + Lanes

	Lanes uint32 = 64
)

// Pins of a proxy beside the link of from_proxy.
const (
	steerPin     = "steer"
	listenersPin = "listeners"
)

func proxyDir(pins string, generation uint8) string {
	return filepath.Join(pins, proxiesDir, strconv.Itoa(int(generation)))
}

// AttachProxy wires a proxy: from_proxy on the host side of its veth, and in
// its namespace a steer program with a sockmap of its own (ProxyMaps gives
// it). It may be repeated; a generation can't move to another namespace.
func (d *Datapath) AttachProxy(generation uint8, ifindex int, netns *os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := proxyDir(d.opts.Pins, generation)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory for the pins of proxy %d: %w", generation, err)
	}
	steer, err := loadSteerOf(dir)
	if err != nil {
		return fmt.Errorf("proxy %d: %w", generation, err)
	}
	defer letGo(steer)
	if err := attachSteer(filepath.Join(dir, steerPin), steer.Steer, netns); err != nil {
		return fmt.Errorf("proxy %d: %w", generation, err)
	}
	if d.services != nil {
		if err := d.services.LeaveAlone(generation, netns); err != nil {
			// It matters only where the cgroup of services is that of proxies, too.
			d.log.Warn("what the proxy connects to may be translated", "error", err)
		}
	}
	return d.attach(d.proxyHook(), ifindex, filepath.Join(dir, progFromProxy))
}

// DetachProxy undoes AttachProxy, also for an interface that is gone.
func (d *Datapath) DetachProxy(generation uint8, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.proxyHook()
	if err := removeFilter(h.name, ifindex, d.opts.Pins, h.attach); err != nil {
		return err
	}
	return removeLinks(proxyDir(d.opts.Pins, generation))
}

// AttachedProxies lists the generations that AttachProxy wired and nobody
// detached, dead ones included.
func (d *Datapath) AttachedProxies() ([]uint8, error) {
	entries, err := os.ReadDir(filepath.Join(d.opts.Pins, proxiesDir))
	if err != nil {
		return nil, fmt.Errorf("list pinned proxies: %w", err)
	}
	var out []uint8
	for _, e := range entries {
		if g, err := strconv.ParseUint(e.Name(), 10, 8); err == nil {
			out = append(out, uint8(g))
		}
	}
	return out, nil
}

// proxyTables are the tables that a proxy has, and whether for reading only.
func proxyTables() map[string]bool {
	return map[string]bool{
		"conns": false, "grants": false, revisionTable: false, "fqdn": false, "conntrack": true, "shares": true,
	}
}

// Severed tells whether there were tables of a proxy with another layout when
// this Datapath was loaded: proxies that were wired before know nothing of the
// flows to come, and nothing of theirs passes once Activate was called.
func (d *Datapath) Severed() bool { return d.severed }

// isSevered finds that out, once all tables of ours are known.
func (d *Datapath) isSevered() (bool, error) {
	for name := range proxyTables() {
		other, err := latestOther(d.opts.Pins, d.paths, name)
		if err != nil || other != "" {
			return other != "", err
		}
	}
	return false, nil
}

// ProxyMaps opens the tables a proxy of that generation needs, by name: conns,
// grants, its listeners, revision, which only proxies read, and fqdn, all of which
// it may write; and conntrack and shares, which it may read. What it writes to
// fqdn makes the programs believe that an address is one of a name's, and nothing
// else that it could write makes them let a packet pass. The caller closes them.
func (d *Datapath) ProxyMaps(generation uint8) (_ map[string]*os.File, err error) {
	files := map[string]*os.File{}
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	open := func(name, path string, readOnly bool) error {
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: readOnly})
		if err != nil {
			return fmt.Errorf("open table %s for the proxy: %w", name, err)
		}
		defer letGo(m)
		fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("open table %s for the proxy: %w", name, err)
		}
		files[name] = os.NewFile(uintptr(fd), name)
		return nil
	}
	for name, readOnly := range proxyTables() {
		if err := open(name, d.paths[name], readOnly); err != nil {
			return nil, err
		}
	}
	if err := open(listenersPin, filepath.Join(proxyDir(d.opts.Pins, generation), listenersPin), false); err != nil {
		return nil, err
	}
	return files, nil
}

// loadSteerOf loads a steer program onto the sockmap pinned in dir, making that
// if it is not there.
func loadSteerOf(dir string) (_ *steerObjects, err error) {
	spec, err := loadSteer()
	if err != nil {
		return nil, fmt.Errorf("read the built-in eBPF object: %w", err)
	}
	path := filepath.Join(dir, listenersPin)
	listeners, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		if listeners, err = ebpf.NewMap(spec.Maps["listeners"]); err != nil {
			return nil, fmt.Errorf("make table listeners: %w", err)
		}
		if err = listeners.Pin(path); err != nil {
			err = fmt.Errorf("pin table listeners: %w", err)
		}
	}
	if listeners != nil {
		defer letGo(listeners)
	}
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["lane_seed"].Set(rand.Uint32()); err != nil {
		return nil, fmt.Errorf("set up steer: %w", err)
	}
	var o steerObjects
	if err := spec.LoadAndAssign(&o, &ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{"listeners": listeners},
	}); err != nil {
		return nil, fmt.Errorf("load steer: %w", err)
	}
	return &o, nil
}

// attachSteer puts the program into the namespace, or in place of the one that
// is there by the link pinned at path.
func attachSteer(path string, steer *ebpf.Program, netns *os.File) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		defer letGo(l)
		var st unix.Stat_t
		if err := unix.Fstat(int(netns.Fd()), &st); err != nil {
			return fmt.Errorf("inspect namespace: %w", err)
		}
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("inspect the link of steer: %w", err)
		}
		ns := info.NetNs()
		if ns == nil || ns.NetnsInode != 0 && uint64(ns.NetnsInode) != st.Ino {
			return errors.New("another namespace has this generation")
		}
		if ns.NetnsInode != 0 {
			return renewSteer(l, steer)
		}
		// Its namespace has gone, or somebody took it off.
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("unpin the link of steer: %w", err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open the link of steer: %w", err)
	}
	n, err := link.AttachNetNs(int(netns.Fd()), steer)
	if err != nil {
		return fmt.Errorf("attach steer: %w", err)
	}
	defer letGo(n)
	if err := n.Pin(path); err != nil {
		return fmt.Errorf("pin the link of steer: %w", err)
	}
	return nil
}

func renewSteer(l link.Link, steer *ebpf.Program) error {
	if err := l.Update(steer); err != nil {
		return fmt.Errorf("replace steer: %w", err)
	}
	return nil
}

// renewProxies gives the programs of every wired proxy their successors. A
// generation whose namespace is gone is left to DetachProxy.
func (d *Datapath) renewProxies() error {
	generations, err := d.AttachedProxies()
	if err != nil {
		return err
	}
	for _, g := range generations {
		if err := d.renewProxy(proxyDir(d.opts.Pins, g)); err != nil {
			return fmt.Errorf("proxy %d: %w", g, err)
		}
	}
	return nil
}

func (d *Datapath) renewProxy(dir string) error {
	if l, err := link.LoadPinnedLink(filepath.Join(dir, progFromProxy), nil); err == nil {
		defer letGo(l)
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("inspect the link of %s: %w", progFromProxy, err)
		}
		if tcx := info.TCX(); tcx == nil || tcx.Ifindex == 0 {
			return nil
		}
		if err := l.Update(d.objects.FromProxy); err != nil {
			return fmt.Errorf("replace %s: %w", progFromProxy, err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open the link of %s: %w", progFromProxy, err)
	}
	l, err := link.LoadPinnedLink(filepath.Join(dir, steerPin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the link of steer: %w", err)
	}
	defer letGo(l)
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("inspect the link of steer: %w", err)
	}
	if ns := info.NetNs(); ns == nil || ns.NetnsInode == 0 {
		return nil
	}
	steer, err := loadSteerOf(dir)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		// A proxy of a version that has other listeners goes on with them, and
		// gets no new flows: AttachProxy does not take it.
		return nil
	}
	if err != nil {
		return err
	}
	defer letGo(steer)
	return renewSteer(l, steer.Steer)
}

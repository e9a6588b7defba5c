package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
)

// ProxyPrograms tells how what AttachProxy made is found.
type ProxyPrograms struct {
	FromProxy bool   // is on the interface
	Before    string // what runs before it; "": nothing does
	Steer     bool   // is in the namespace
	Listeners bool   // are pinned; a new table would have none of the proxy's
}

// CheckProxy looks at a proxy's programs.
func (d *Datapath) CheckProxy(generation uint8, ifindex int) (p ProxyPrograms, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := proxyDir(d.opts.Pins, generation)
	if p.FromProxy, p.Before, err = d.checkFromProxy(filepath.Join(dir, progFromProxy), ifindex); err != nil {
		return p, err
	}
	if p.Steer, err = steerIsOn(filepath.Join(dir, steerPin)); err != nil {
		return p, err
	}
	_, err = os.Stat(filepath.Join(dir, listenersPin))
	p.Listeners = err == nil
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return p, err
}

func (d *Datapath) checkFromProxy(path string, ifindex int) (there bool, before string, err error) {
	h := d.proxyHook()
	if there, err = linkIsOn(path, ifindex); err != nil {
		return false, "", err
	}
	if there {
		before, err = beforeLink(path, h, ifindex)
		return true, before, err
	}
	filters, err := listFilters(ifindex, h.attach)
	if err != nil {
		return false, "", err
	}
	for _, f := range ownAmong(filters, ifindex, h.attach, d.opts.Pins) {
		if f.program == h.name {
			before, err = beforeFilter(f)
			return true, before, err
		}
	}
	return false, "", nil
}

// steerIsOn tells whether a link of steer is pinned at path and on a namespace.
func steerIsOn(path string) (bool, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the link of steer: %w", err)
	}
	defer letGo(l)
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("inspect the link of steer: %w", err)
	}
	ns := info.NetNs()
	return ns != nil && ns.NetnsInode != 0, nil
}

// RepairProxy puts from_proxy back where AttachProxy put it, and before all
// others where that can be had: all that holds for a generation whose proxy has
// ended.
func (d *Datapath) RepairProxy(generation uint8, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attach(d.proxyHook(), ifindex, filepath.Join(proxyDir(d.opts.Pins, generation), progFromProxy))
}

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Programs of a pod's veth, in the order they are attached: what comes in is
// judged before anything can go out.
const (
	progToPod     = "to_pod"
	progFromPod   = "from_pod"
	progFromProxy = "from_proxy"
)

// hook is a program and the side of the interface it stands on.
type hook struct {
	name    string
	program *ebpf.Program
	attach  ebpf.AttachType
}

func (d *Datapath) podHooks() []hook {
	return []hook{
		{progToPod, d.objects.ToPod, ebpf.AttachTCXEgress},
		{progFromPod, d.objects.FromPod, ebpf.AttachTCXIngress},
	}
}

// hooksByName are those of pods' interfaces and the node's own.
func (d *Datapath) hooksByName() map[string]hook {
	ethernet, l3 := d.hostHooks()
	byName := map[string]hook{}
	for _, h := range slices.Concat(d.podHooks(), ethernet, l3) {
		byName[h.name] = h
	}
	return byName
}

func (d *Datapath) proxyHook() hook {
	return hook{progFromProxy, d.objects.FromProxy, ebpf.AttachTCXIngress}
}

// AttachPod puts the programs on the host side of a pod's veth, before all
// others where that can be had. What is attached there already is replaced
// without a gap.
func (d *Datapath) AttachPod(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.podHooks() {
		if err := d.attach(h, ifindex, linkPath(d.opts.Pins, h.name, ifindex)); err != nil {
			return err
		}
	}
	return nil
}

// DetachPod takes the programs off. It is not an error if there are none, or
// no such interface.
func (d *Datapath) DetachPod(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.detachHooks(d.podHooks(), ifindex)
}

// Attached lists the interfaces with both programs of a pod on them.
func (d *Datapath) Attached() ([]int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	has, err := d.attachments()
	if err != nil {
		return nil, err
	}
	var out []int
	for a := range has {
		if a.program == progFromPod && has[attachment{progToPod, a.ifindex}] {
			out = append(out, a.ifindex)
		}
	}
	slices.Sort(out)
	return out, nil
}

// attachments are the programs that are on interfaces, but for the proxies'.
func (d *Datapath) attachments() (map[attachment]bool, error) {
	has := map[attachment]bool{}
	pinned, err := pinnedLinks(d.opts.Pins)
	if err != nil {
		return nil, err
	}
	for path, a := range pinned {
		live, err := linkIsOn(path, a.ifindex)
		if err != nil {
			return nil, err
		}
		if live {
			has[a] = true
		}
	}
	filters, err := ownFilters(d.opts.Pins)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		has[f.attachment] = true
	}
	return has, nil
}

// Activate replaces a predecessor's programs, wherever they are attached, by
// this Datapath's, one after the other and each without a gap, and then
// removes what is left of other layouts and of interfaces that are gone. Call
// it once, when the tables hold what is to be enforced.
func (d *Datapath) Activate() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	byName := d.hooksByName()
	byName[progFromProxy] = d.proxyHook()
	pinned, err := pinnedLinks(d.opts.Pins)
	if err != nil {
		return err
	}
	for path, a := range pinned {
		h, ours := byName[a.program]
		if !ours {
			continue
		}
		if err := d.renewLink(path, h, a.ifindex); err != nil {
			return err
		}
	}
	filters, err := ownFilters(d.opts.Pins)
	if err != nil {
		return err
	}
	for _, f := range filters {
		if h, ours := byName[f.program]; ours {
			if err := putFilter(h, f.ifindex, d.opts.Pins); err != nil {
				return err
			}
		}
	}
	if err := d.renewProxies(); err != nil {
		return err
	}
	stale, err := staleMaps(d.opts.Pins, d.paths)
	if err != nil {
		return err
	}
	if len(stale) > 0 {
		// Until now flows were judged by those, also at revisions of ours.
		d.BumpRevision()
	}
	if d.emptyConntrack {
		// Until now a predecessor may have had connections in its own.
		d.beLenient()
	}
	return dropMaps(stale)
}

// attach puts one program on an interface, pinned at path where it is a link.
// A filter that was there for the same hook goes once the link stands, and the
// other way round.
func (d *Datapath) attach(h hook, ifindex int, path string) error {
	if !d.opts.ForceClsact {
		err := d.attachLink(h, ifindex, path)
		if err == nil {
			return removeFilter(h.name, ifindex, d.opts.Pins, h.attach)
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	if err := putFilter(h, ifindex, d.opts.Pins); err != nil {
		return err
	}
	return unpinLink(path)
}

func (d *Datapath) attachLink(h hook, ifindex int, path string) error {
	done, err := updateLink(path, h, ifindex)
	if err != nil {
		return err
	}
	if done {
		by, err := beforeLink(path, h, ifindex)
		if err != nil || by == "" {
			return err
		}
		// A link can't be moved, and its program not be there twice: in between
		// a filter, which attach takes off then, does its work.
		if err := putFilter(h, ifindex, d.opts.Pins); err != nil {
			return err
		}
		if err := unpinLink(path); err != nil {
			return err
		}
	}
	// First of all: an earlier program could let a packet pass unjudged.
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: h.program, Attach: h.attach, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", h.name, ifindex, err)
	}
	defer letGo(l)
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin the link of %s on interface %d: %w", h.name, ifindex, err)
	}
	return nil
}

// renewLink updates a pinned link, or unpins it if its interface is gone.
func (d *Datapath) renewLink(path string, h hook, ifindex int) error {
	done, err := updateLink(path, h, ifindex)
	if err != nil || done {
		return err
	}
	d.log.Debug("interface is gone", "program", h.name, "ifindex", ifindex)
	return nil
}

// updateLink gives the link pinned at path a new program. A link whose
// interface is gone is unpinned, and done is false.
func updateLink(path string, h hook, ifindex int) (done bool, err error) {
	live, err := linkIsOn(path, ifindex)
	if err != nil {
		return false, err
	}
	if !live {
		return false, unpinLink(path)
	}
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false, fmt.Errorf("open pinned link of %s on interface %d: %w", h.name, ifindex, err)
	}
	defer letGo(l)
	if err := l.Update(h.program); err != nil {
		return false, fmt.Errorf("replace %s on interface %d: %w", h.name, ifindex, err)
	}
	return true, nil
}

// linkIsOn tells whether a link is pinned at path and still holds a program on
// that interface: the kernel lets go of it when the interface goes, and the
// number may be another's by then.
func linkIsOn(path string, ifindex int) (bool, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", filepath.Base(path), err)
	}
	defer letGo(l)
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("inspect pinned link %s: %w", filepath.Base(path), err)
	}
	tcx := info.TCX()
	return tcx != nil && int(tcx.Ifindex) == ifindex, nil
}

// unpinLink detaches the program of a pinned link and unpins it. Without the
// first the kernel would detach it too, but a little later.
func unpinLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link %s: %w", filepath.Base(path), err)
	}
	defer letGo(l)
	if err := l.Detach(); err != nil && !errors.Is(err, link.ErrNotSupported) {
		return fmt.Errorf("detach link %s: %w", filepath.Base(path), err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin link %s: %w", filepath.Base(path), err)
	}
	return nil
}

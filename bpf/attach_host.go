package bpf

import (
	"errors"
	"slices"

	"github.com/cilium/ebpf"
)

// Programs of an interface of the node, in the order they are attached: what the
// node sends on is remembered before answers to it are judged.
const (
	progFromHost = "from_host"
	progToHost   = "to_host"
)

func (d *Datapath) hostHooks() []hook {
	return []hook{
		{progFromHost, d.objects.FromHost, ebpf.AttachTCXEgress},
		{progToHost, d.objects.ToHost, ebpf.AttachTCXIngress},
	}
}

// AttachHost puts the programs that judge the node's own traffic on one of its
// interfaces, before all others where that can be had. They do nothing until Host
// names a policy. What is attached there already is replaced without a gap. The
// interface must have Ethernet headers, and not be a pod's.
func (d *Datapath) AttachHost(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.hostHooks() {
		if err := d.attach(h, ifindex, linkPath(d.opts.Pins, h.name, ifindex)); err != nil {
			return err
		}
	}
	return nil
}

// DetachHost takes them off. It is not an error if there are none, or no such
// interface.
func (d *Datapath) DetachHost(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var failed []error
	hooks := d.hostHooks()
	slices.Reverse(hooks)
	for _, h := range hooks {
		failed = append(failed, unpinLink(linkPath(d.opts.Pins, h.name, ifindex)))
		failed = append(failed, removeFilter(h.name, ifindex, d.opts.Pins, h.attach))
	}
	return errors.Join(failed...)
}

// AttachedHost lists the interfaces with any of those programs on them; whole
// tells of each whether it has both.
func (d *Datapath) AttachedHost() (whole map[int]bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	has, err := d.attachments()
	if err != nil {
		return nil, err
	}
	whole = map[int]bool{}
	for a := range has {
		if a.program == progFromHost || a.program == progToHost {
			whole[a.ifindex] = has[attachment{progFromHost, a.ifindex}] && has[attachment{progToHost, a.ifindex}]
		}
	}
	return whole, nil
}

package bpf

import (
	"errors"
	"slices"

	"github.com/cilium/ebpf"
)

// Programs of an interface of the node, in the order they are attached: what the
// node sends on is remembered before answers to it are judged.
const (
	progFromHost   = "from_host"
	progToHost     = "to_host"
	progFromHostL3 = "from_host_l3"
	progToHostL3   = "to_host_l3"
)

// hostHooks are those of interfaces with Ethernet headers, and of others.
func (d *Datapath) hostHooks() (ethernet, l3 []hook) {
	return []hook{
			{progFromHost, d.objects.FromHost, ebpf.AttachTCXEgress},
			{progToHost, d.objects.ToHost, ebpf.AttachTCXIngress},
		}, []hook{
			{progFromHostL3, d.objects.FromHostL3, ebpf.AttachTCXEgress},
			{progToHostL3, d.objects.ToHostL3, ebpf.AttachTCXIngress},
		}
}

// AttachHost puts the programs that judge the node's own traffic on one of its
// interfaces, before all others where that can be had. They do nothing until Host
// names a policy. What is attached there already is replaced without a gap.
// ethernet tells whether packets there have Ethernet headers: with the wrong answer
// none is understood, and those of the node are dropped where a policy holds. The
// interface must not be a pod's.
func (d *Datapath) AttachHost(ifindex int, ethernet bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	hooks, others := d.hostHooks()
	if !ethernet {
		hooks, others = others, hooks
	}
	for _, h := range hooks {
		if err := d.attach(h, ifindex, linkPath(d.opts.Pins, h.name, ifindex)); err != nil {
			return err
		}
	}
	return d.detachHooks(others, ifindex) // its kind has changed
}

// DetachHost takes them off. It is not an error if there are none, or no such
// interface.
func (d *Datapath) DetachHost(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	ethernet, l3 := d.hostHooks()
	return errors.Join(d.detachHooks(ethernet, ifindex), d.detachHooks(l3, ifindex))
}

func (d *Datapath) detachHooks(hooks []hook, ifindex int) error {
	var failed []error
	for _, h := range slices.Backward(hooks) {
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
		switch a.program {
		case progFromHost, progToHost, progFromHostL3, progToHostL3:
			whole[a.ifindex] = has[attachment{progFromHost, a.ifindex}] && has[attachment{progToHost, a.ifindex}] ||
				has[attachment{progFromHostL3, a.ifindex}] && has[attachment{progToHostL3, a.ifindex}]
		}
	}
	return whole, nil
}

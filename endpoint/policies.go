package endpoint

import (
	"fmt"
	"slices"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// policies brings the policy and policies tables to the resolved policies.
//
// An existing policy is changed in place while packets are judged by it, so
// at every moment what is denied before and after must be denied, and what is
// allowed before and after be allowed: denies are written first and deleted
// last, and the entries are all there before the policy begins to enforce.
type policies struct {
	entries store[bpf.PolicyKey, bpf.PolicyEntry]
	infos   *table[uint32, bpf.PolicyInfo]

	want map[uint32]*policy.Resolved
	have map[uint32]*present
	open map[uint32]*openPolicy
	// stuck are policies whose entries could not all be written: nothing new
	// may point to them, and nothing is taken out of them.
	stuck map[uint32]error
	held  int // entries in the kernel
}

func newPolicies(entries store[bpf.PolicyKey, bpf.PolicyEntry], infos store[uint32, bpf.PolicyInfo]) *policies {
	return &policies{
		entries: entries, infos: newTable("policies", infos),
		want: map[uint32]*policy.Resolved{}, have: map[uint32]*present{},
		open: map[uint32]*openPolicy{}, stuck: map[uint32]error{},
	}
}

func (p *policies) adopt() error {
	if err := p.infos.adopt(); err != nil {
		return err
	}
	all, err := p.entries.Snapshot()
	if err != nil {
		return fmt.Errorf("read policy: %w", err)
	}
	for k, e := range all {
		p.noteHave(k, e)
		p.openUp(k.Policy).whole = true
	}
	return nil
}

// set says what policy id is to be; nil: gone. Where r tells what was edited, the
// rest is taken to be as it was.
func (p *policies) set(id uint32, r *policy.Resolved) {
	o := p.openUp(id)
	switch {
	case r == nil:
		delete(p.want, id)
		o.whole = true
		return
	case p.want[id] == nil || r.Edited == nil:
		o.whole = true
	}
	for _, k := range r.Edited {
		o.keys[k] = struct{}{}
	}
	p.want[id] = r
}

// update writes what is wanted. What is not wanted stays until prune.
func (p *policies) update() (written int, err error) {
	clear(p.stuck)
	open := keysOf(p.open)
	slices.Sort(open)
	infos := map[uint32]bpf.PolicyInfo{}
	var changed []uint32
	for _, id := range open {
		if p.want[id] == nil {
			p.infos.unset(id)
			continue
		}
		changed = append(changed, id)
		infos[id] = p.announce(id)
		// Entries that are about to come must be looked for at once.
		if now, ok := p.infos.have[id]; ok {
			p.infos.set(id, now.Union(infos[id]))
		} else {
			p.infos.unset(id)
		}
	}
	first := func(e error) {
		if err == nil {
			err = e
		}
	}
	if _, e := p.infos.update(nil); e != nil {
		first(e)
	}
	if e := p.clearIdle(changed); e != nil {
		first(e)
	}
	// By kind over all policies, so that the kernel is called a few times
	// only. What fails early takes the rest of its policy along.
	for _, actions := range [][]policy.Action{{policy.Deny}, {policy.Refuse, policy.Redirect}, {policy.Allow}} {
		var keys []bpf.PolicyKey
		var values []bpf.PolicyEntry
		for _, id := range changed {
			if p.stuck[id] != nil {
				continue
			}
			there := p.there(id)
			for k, e := range p.wanted(id) {
				if !slices.Contains(actions, e.Action) {
					continue
				}
				key, value := bpf.PolicyKeyOf(id, k), bpf.PolicyEntryOf(e)
				if old, ok := there[key]; !ok || old != value {
					keys, values = append(keys, key), append(values, value)
				}
			}
		}
		n, failed, e := putAll(p.entries, keys, values)
		written += n
		for i, k := range keys {
			if failed[i] {
				p.stuck[k.Policy] = fmt.Errorf("write policy: %w", e)
			} else {
				p.noteHave(k, values[i])
			}
		}
		if e != nil {
			first(fmt.Errorf("write policy (%d entries): %w", len(failed), e))
		}
	}
	for _, id := range changed {
		if p.stuck[id] != nil {
			continue
		}
		i := infos[id]
		if now, ok := p.infos.have[id]; ok {
			i = i.Union(now)
		}
		p.infos.set(id, i)
	}
	n, e := p.infos.update(nil)
	if e != nil {
		first(e)
	}
	return written + n, err
}

// clearIdle deletes what is left over in directions that are not enforced:
// nobody asks for it now, and it must not count once they are.
func (p *policies) clearIdle(ids []uint32) error {
	var keys []bpf.PolicyKey
	for _, id := range ids {
		now, there := p.infos.have[id]
		if there && now.Enforced[0] != 0 && now.Enforced[1] != 0 {
			continue
		}
		for k := range p.unwanted(id) {
			if now.Enforced[k.Direction] == 0 {
				keys = append(keys, k)
			}
		}
	}
	_, failed, err := deleteAll(p.entries, keys)
	for i, k := range keys {
		if failed[i] {
			p.stuck[k.Policy] = fmt.Errorf("delete from policy: %w", err)
			continue
		}
		p.noteGone(k)
	}
	return err
}

// usable tells whether an endpoint may be given this policy.
func (p *policies) usable(id uint32) bool {
	_, there := p.infos.have[id]
	return there && p.stuck[id] == nil
}

// prune deletes what is not wanted, denies last.
func (p *policies) prune() (deleted int, err error) {
	first := func(e error) {
		if err == nil {
			err = e
		}
	}
	n, e := p.infos.prune(nil)
	deleted += n
	first(e)

	var allows, others, denies []bpf.PolicyKey
	for id := range p.open {
		if p.stuck[id] != nil {
			continue
		}
		r := p.want[id]
		if r == nil {
			if _, there := p.infos.have[id]; there {
				continue // its row could not be deleted: it may still be asked
			}
		}
		for k, e := range p.unwanted(id) {
			switch {
			case e.Action == uint8(policy.Allow):
				allows = append(allows, k)
			case e.Action == uint8(policy.Deny):
				denies = append(denies, k)
			default:
				others = append(others, k)
			}
		}
	}
	unfinished := map[uint32]bool{}
	for _, keys := range [][]bpf.PolicyKey{allows, others, denies} {
		keys = slices.DeleteFunc(keys, func(k bpf.PolicyKey) bool { return unfinished[k.Policy] })
		n, failed, e := deleteAll(p.entries, keys)
		deleted += n
		for i, k := range keys {
			if failed[i] {
				unfinished[k.Policy] = true
				continue
			}
			p.noteGone(k)
		}
		if e != nil {
			first(fmt.Errorf("delete from policy (%d entries): %w", len(failed), e))
		}
	}
	for id := range p.open {
		if p.stuck[id] != nil || unfinished[id] {
			continue
		}
		if p.want[id] != nil {
			p.infos.set(id, p.announced(id)) // now without the bits of what went
		} else if len(p.there(id)) == 0 {
			delete(p.have, id)
		}
	}
	n, e = p.infos.update(nil)
	deleted += n
	first(e)
	for id := range p.open {
		_, owed := p.infos.open[id]
		if p.stuck[id] == nil && !unfinished[id] && !owed {
			delete(p.open, id)
		}
	}
	return deleted, err
}

// makeRoom deletes the entries of policies that no endpoint in the kernel has:
// the order of update and prune must not keep a full table full.
func (p *policies) makeRoom(inUse func(uint32) bool) error {
	var ids []uint32
	for id := range p.open {
		if p.want[id] == nil && !inUse(id) {
			ids = append(ids, id)
		}
	}
	if _, err := p.infos.drop(ids); err != nil {
		return err
	}
	var keys []bpf.PolicyKey
	for _, id := range ids {
		keys = append(keys, keysOf(p.there(id))...)
	}
	_, failed, err := deleteAll(p.entries, keys)
	for i, k := range keys {
		if !failed[i] {
			p.noteGone(k)
		}
	}
	return err
}

func (p *policies) settled() bool { return len(p.open) == 0 }

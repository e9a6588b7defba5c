package endpoint

import (
	"iter"
	"maps"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// openPolicy is where what is wanted of a policy may differ from what the
// kernel has: at these keys, or anywhere.
type openPolicy struct {
	whole bool
	keys  map[policy.Key]struct{}
}

// present are a policy's entries in the kernel, and how many of them ask for each
// announcement.
type present struct {
	entries   map[bpf.PolicyKey]bpf.PolicyEntry
	announced map[bpf.PolicyInfo]int
}

func (h *present) put(k bpf.PolicyKey, e bpf.PolicyEntry) {
	h.drop(k)
	h.entries[k] = e
	h.announced[bpf.Announcement(k, e)]++
}

func (h *present) drop(k bpf.PolicyKey) {
	e, there := h.entries[k]
	if !there {
		return
	}
	delete(h.entries, k)
	a := bpf.Announcement(k, e)
	if h.announced[a]--; h.announced[a] == 0 {
		delete(h.announced, a)
	}
}

// there are the entries of policy id in the kernel.
func (p *policies) there(id uint32) map[bpf.PolicyKey]bpf.PolicyEntry {
	if h := p.have[id]; h != nil {
		return h.entries
	}
	return nil
}

func (p *policies) noteHave(k bpf.PolicyKey, e bpf.PolicyEntry) {
	h := p.have[k.Policy]
	if h == nil {
		h = &present{map[bpf.PolicyKey]bpf.PolicyEntry{}, map[bpf.PolicyInfo]int{}}
		p.have[k.Policy] = h
	}
	p.held -= len(h.entries)
	h.put(k, e)
	p.held += len(h.entries)
}

func (p *policies) noteGone(k bpf.PolicyKey) {
	h := p.have[k.Policy]
	p.held -= len(h.entries)
	h.drop(k)
	p.held += len(h.entries)
}

func (p *policies) openUp(id uint32) *openPolicy {
	o := p.open[id]
	if o == nil {
		o = &openPolicy{keys: map[policy.Key]struct{}{}}
		p.open[id] = o
	}
	return o
}

// wanted are the entries of an open policy that are to be and may not be there.
func (p *policies) wanted(id uint32) iter.Seq2[policy.Key, policy.Entry] {
	r, o := p.want[id], p.open[id]
	if o.whole {
		return maps.All(r.Entries)
	}
	return func(yield func(policy.Key, policy.Entry) bool) {
		for k := range o.keys {
			if e, ok := r.Entries[k]; ok && !yield(k, e) {
				return
			}
		}
	}
}

// unwanted are the entries of an open policy that are there and are not to be.
func (p *policies) unwanted(id uint32) iter.Seq2[bpf.PolicyKey, bpf.PolicyEntry] {
	r, o := p.want[id], p.open[id]
	return func(yield func(bpf.PolicyKey, bpf.PolicyEntry) bool) {
		there := p.there(id)
		if !o.whole {
			for k := range o.keys {
				key := bpf.PolicyKeyOf(id, k)
				_, keep := r.Entries[k]
				if e, ok := there[key]; ok && !keep && !yield(key, e) {
					return
				}
			}
			return
		}
		keep := p.keys(id)
		for key, e := range there {
			if !keep[key] && !yield(key, e) {
				return
			}
		}
	}
}

// announce is what the kernel must be told of a policy before it has the entries
// that are wanted, while it has those that are not.
func (p *policies) announce(id uint32) bpf.PolicyInfo {
	i := p.announced(id)
	for k, e := range p.wanted(id) {
		i = i.Union(bpf.Announcement(bpf.PolicyKeyOf(id, k), bpf.PolicyEntryOf(e)))
	}
	return i
}

// announced is what the kernel must be told of the entries it has; what is
// enforced is what is wanted.
func (p *policies) announced(id uint32) bpf.PolicyInfo {
	var i bpf.PolicyInfo
	for d, on := range p.want[id].Enforced {
		if on {
			i.Enforced[d] = 1
		}
	}
	if h := p.have[id]; h != nil {
		for a := range h.announced {
			i = i.Union(a)
		}
	}
	return i
}

// keys are the entries that policy id is to have.
func (p *policies) keys(id uint32) map[bpf.PolicyKey]bool {
	r := p.want[id]
	if r == nil {
		return nil
	}
	keys := make(map[bpf.PolicyKey]bool, len(r.Entries))
	for k := range r.Entries {
		keys[bpf.PolicyKeyOf(id, k)] = true
	}
	return keys
}

package fqdn

import "time"

// wants are the combinations of selectors that the agent is asked to give an
// identity.
type wants struct {
	sets []uint32
	cost int32 // of all
}

const (
	// maxWanted bounds what all wants cost. Each costs 1 at least, since it costs the
	// agent entries in every policy that shares a selector with it, and 1 for each
	// wantBytes of the message that tells of it: so no more than 4 MB are told.
	maxWanted = 1024
	wantBytes = 4096
	// maxOneWant bounds the cost of one.
	maxOneWant = maxWanted / podShare
	// maxWantSelectors bounds the selectors of one: the agent makes no more.
	maxWantSelectors = 4096
	// wantedIdle is how long a combination stays wanted that no address has any
	// more, if nobody needs its place: addresses rotate, and come back.
	wantedIdle = 300
)

// costOf is what it costs to want a set.
func (u *universe) costOf(set uint32) int32 {
	const heads = 16 // tags and lengths
	bytes := heads
	for _, at := range u.sets[set].selectors {
		s := &u.selectors[at]
		bytes += len(s.Name) + len(s.Pattern) + len(s.Namespace) + heads
	}
	return int32(1 + bytes/wantBytes)
}

// ownerOf is the pod whose answers made an address what it is, as far as is known:
// who owns its latest name.
func (c *Cache) ownerOf(a *address) uint32 {
	if a.first == none {
		return none
	}
	return c.names.at(c.pairs.at(a.first).name).owner
}

// want has the agent be told of a set that an address has, for a pod. Where there
// are too many, one that nobody uses gives way, or one of the pod with the most,
// as long as that has more than this one.
func (c *Cache) want(set, pod uint32) bool {
	s := &c.u.sets[set]
	if s.wanted || len(s.selectors) < 2 {
		return true
	}
	s.owner = pod
	cost := c.u.costOf(set)
	if cost > maxOneWant || len(s.selectors) > maxWantSelectors {
		return true // nor will it ever be
	}
	var gone []uint32
	for c.u.wants.cost+cost > maxWanted {
		least, ok := c.leastWanted(pod, cost)
		if !ok { // the others stay
			for _, other := range gone {
				c.u.wants.add(other, c.u)
				c.pods.of(c.u.sets[other].owner).wants += c.u.sets[other].cost
			}
			return false
		}
		if other := c.u.wants.sets[least]; c.u.sets[other].addrs > 0 {
			gone = append(gone, other)
		}
		c.unwant(least)
	}
	s.since, s.cost = time.Now(), cost
	c.u.wants.add(set, c.u)
	c.pods.of(pod).wants += cost
	c.tell()
	return true
}

func (w *wants) add(set uint32, u *universe) {
	s := &u.sets[set]
	s.wanted = true
	w.sets = append(w.sets, set)
	w.cost += s.cost
}

// leastWanted is the place in the list of the want that gives way to another of a
// pod.
func (c *Cache) leastWanted(pod uint32, cost int32) (place int, ok bool) {
	u, unused, most := c.u, false, c.pods.of(pod).wants+cost
	for i, set := range u.wants.sets {
		s := &u.sets[set]
		has := c.pods.of(s.owner).wants
		switch {
		case s.addrs == 0:
			if !unused || s.idle < u.sets[u.wants.sets[place]].idle {
				place, unused, ok = i, true, true
			}
		case unused || has < most:
		case has > most:
			place, most, ok = i, has, true
		case ok && s.used < u.sets[u.wants.sets[place]].used:
			place = i
		}
	}
	return place, ok
}

// unwant takes a want back, by its place in the list.
func (c *Cache) unwant(place int) {
	w := &c.u.wants
	set, last := w.sets[place], len(w.sets)-1
	w.sets[place], w.sets = w.sets[last], w.sets[:last]
	s := &c.u.sets[set]
	s.wanted = false
	w.cost -= s.cost
	c.pods.of(s.owner).wants -= s.cost
	c.u.tidy(set)
}

// use notes that a pod's answer has these addresses: what they need is wanted,
// where it is not, for that pod.
func (c *Cache) use(records []Record, pod, now uint32) {
	if c.u == nil {
		return
	}
	for i := range records {
		if !c.outside(records[i].Addr) {
			continue
		}
		at, ok := c.findAddr(records[i].Addr.As16())
		if !ok {
			continue
		}
		a := c.addrs.at(at)
		if a.first == none {
			continue
		}
		c.refresh(a, now)
		s := &c.u.sets[a.set]
		s.used = now
		if s.id == 0 {
			c.want(a.set, pod)
		}
	}
}

// tendWants takes back wants that no address has had for a while, and has those
// be told that found no room.
func (c *Cache) tendWants(now uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.u == nil {
		return
	}
	for i := len(c.u.wants.sets) - 1; i >= 0; i-- {
		if s := &c.u.sets[c.u.wants.sets[i]]; s.addrs == 0 && s.idle+wantedIdle < now {
			c.unwant(i)
			c.tell()
		}
	}
	full := map[uint32]bool{} // pods that have their share
	for i := range c.u.sets {
		s := &c.u.sets[i]
		if s.addrs == 0 || s.wanted {
			continue
		}
		if pod := c.pods.known(s.owner); !full[pod] && !c.want(uint32(i), pod) {
			full[pod] = true
		}
	}
}

// keepWants has a universe want what the one before did: an address that had a
// combination will ask for what is left of it.
func (c *Cache) keepWants(fresh *universe) {
	if c.u == nil {
		return
	}
	now := c.clock()
	for _, set := range c.u.wants.sets {
		s := &c.u.sets[set]
		pod := c.pods.of(s.owner)
		pod.wants -= s.cost
		at, ok := fresh.intern(fresh.places(c.u.list(set)))
		if !ok {
			continue
		}
		if to := &fresh.sets[at]; len(to.selectors) > 1 && !to.wanted {
			to.since, to.idle, to.owner, to.cost = s.since, now, s.owner, fresh.costOf(at)
			fresh.wants.add(at, fresh)
			pod.wants += to.cost
		} else {
			fresh.tidy(at)
		}
	}
}

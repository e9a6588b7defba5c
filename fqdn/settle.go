package fqdn

import (
	"slices"
	"time"

	"github.com/weirnet/weir/identity"
)

// setOfName is the set of selectors that match a name.
func (c *Cache) setOfName(at uint32) uint32 {
	n := c.names.at(at)
	if n.epoch == c.u.epoch {
		return n.set
	}
	set, ok := c.u.foretold(at)
	if !ok {
		set = c.u.matching(c.text(n), c.scopes.list[n.scope].namespace)
		c.u.sets[set].names++
	}
	n.set, n.epoch = set, c.u.epoch
	return set
}

// unmatch forgets which selectors match a name that goes.
func (c *Cache) unmatch(at uint32) {
	if n := c.names.at(at); c.u != nil && n.epoch == c.u.epoch {
		c.u.lose(n.set)
	}
	for _, u := range [...]*universe{c.u, c.next} {
		if u == nil {
			continue
		}
		if set, ok := u.foretold(at); ok {
			u.lose(set)
		}
	}
}

// assign gives an address of the present epoch a set.
func (c *Cache) assign(a *address, set, now uint32) {
	old := a.set
	if old == set {
		return
	}
	a.set = set
	s := &c.u.sets[set]
	s.addrs++
	s.used = now
	c.want(set, c.ownerOf(a))
	c.leave(old, now)
}

// leave takes an address away from a set.
func (c *Cache) leave(set, now uint32) {
	s := &c.u.sets[set]
	if set == 0 {
		return
	}
	s.addrs--
	if s.addrs == 0 {
		s.idle = now
		c.u.tidy(set)
	}
}

// tell wakes those who watch.
func (c *Cache) tell() {
	close(c.news)
	c.news = make(chan struct{})
}

// refresh finds out the set of an address, if that is not known.
func (c *Cache) refresh(a *address, now uint32) {
	if a.epoch == c.u.epoch {
		return
	}
	a.epoch, a.set = c.u.epoch, 0
	set, last := uint32(0), uint32(0)
	for at := a.first; at != none; {
		p := c.pairs.at(at)
		at = p.nextAddr
		one := c.setOfName(p.name)
		if one == last {
			continue // of hundreds of thousands most are like the one before
		}
		last = one
		joined := c.u.join(set, one)
		if joined != set {
			c.u.tidy(set)
		}
		set = joined
	}
	c.assign(a, set, now)
}

// stale makes the set of an address unknown.
func (c *Cache) stale(a *address, now uint32) {
	if c.u != nil && a.epoch == c.u.epoch {
		c.leave(a.set, now)
	}
	a.epoch, a.set = 0, 0
}

// settle brings the row of an address in line with its names. Where the right
// identity is yet to be made, and patient allows, it leaves a row that says less
// than the names, and tells until when; else it writes the best there is.
func (c *Cache) settle(at, now uint32, patient bool) (until time.Time, err error) {
	if c.u == nil {
		return until, nil // nobody knows what the row should be
	}
	a := c.addrs.at(at)
	if a.first == none {
		return until, c.settleInherited(at, a, now)
	}
	c.refresh(a, now)
	s := &c.u.sets[a.set]
	id := s.id
	if id == 0 && a.set != 0 {
		if patient && c.watchers > 0 && s.wanted {
			until = s.since.Add(patience)
			if time.Now().Before(until) && (a.written == 0 || c.u.narrower(identity.ID(a.written), a.set)) {
				return until, nil
			}
			until = time.Time{}
		}
		best, has := c.u.bestOf(a.set), identity.ID(a.written)
		switch {
		case slices.Contains(best, has):
			id = has // as good as any, and flows depend on it
		case !s.wanted && has != 0 && c.u.narrower(has, a.set):
			// There is no room to want more for the pod that brought the rest, and what
			// others had is not to go for that.
			id = has
		case len(best) > 0:
			id = best[0]
		}
		if uint32(id) != a.written || id == 0 {
			c.counts.Narrowed++
		}
	}
	return until, c.write(a, id)
}

// settleInherited takes away what a predecessor left where nobody has that
// identity any more. While it stays, so does the combination it is for.
func (c *Cache) settleInherited(at uint32, a *address, now uint32) error {
	if set, ok := c.u.ofID[identity.ID(a.written)]; ok && a.written != 0 && c.outside(addrOf(a.ip)) {
		if a.epoch != c.u.epoch {
			a.epoch, a.set = c.u.epoch, 0
		}
		c.assign(a, set, now)
		return nil
	}
	return c.disown(at, a, now)
}

// disown takes away the row of an address that no name stands for.
func (c *Cache) disown(at uint32, a *address, now uint32) error {
	c.stale(a, now)
	if !c.retired || a.written == 0 {
		if err := c.write(a, 0); err != nil {
			return err
		}
	} // else the row may be the successor's
	c.removeAddr(at)
	return nil
}

// write makes the row of an address say id; 0: there is none.
func (c *Cache) write(a *address, id identity.ID) (err error) {
	if a.written == uint32(id) {
		return nil
	}
	if c.retired {
		return c.writeNew(a, id)
	}
	if id == 0 {
		if err = c.table.Delete(addrOf(a.ip)); err != nil {
			err = rowError("delete", a.ip, err)
		}
	} else if err = c.table.Set(addrOf(a.ip), id); err != nil {
		err = rowError("write", a.ip, err)
	}
	if err != nil {
		c.owed = true
		return err
	}
	a.written = uint32(id)
	return nil
}

// writeNew writes a row where there is none: the others are the successor's.
func (c *Cache) writeNew(a *address, id identity.ID) error {
	now, there, err := c.table.Get(addrOf(a.ip))
	if err == nil && !there && id != 0 {
		now, err = id, c.table.Set(addrOf(a.ip), id)
	}
	if err != nil {
		return rowError("write", a.ip, err)
	}
	a.written = uint32(now)
	return nil
}

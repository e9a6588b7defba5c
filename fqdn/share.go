package fqdn

import (
	"context"
	"math"
	"slices"
	"time"
)

// podShare is the part of all addresses, and of the names' text, that one pod's
// names may have when there is no room for all: this one of so many.
const podShare = 4

// manyPairs and muchText tell whether a pod has its share.
func (c *Cache) manyPairs(e *podEntry) bool { return int(e.pairs) >= c.settings.Addresses/podShare }

func (c *Cache) muchText(e *podEntry) bool { return int(e.text) >= c.settings.textOf()/podShare }

// room tells whether another pair may be made, with a name that is known, or is
// yet to be, and that a pod owns. Beyond the bound, until something is evicted,
// there is some room for all, and then some for pods that don't have more than
// their share.
func (c *Cache) room(known bool, owner uint32) bool {
	pairs, text, e := c.pairs.len(), c.texts.bytes, c.pods.of(owner)
	if pairs >= c.settings.Addresses || text >= c.settings.textOf() {
		c.look()
	}
	switch {
	case pairs >= c.settings.most(), c.addrs.len() >= maxPlaces,
		pairs >= c.settings.greedy() && c.manyPairs(e):
		return false
	case known:
		return true
	}
	return text < c.settings.textOf() || text < c.settings.mostText() && !c.muchText(e)
}

// look has Run look for what can go.
func (c *Cache) look() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// rescue makes a name that another pod asks for that one's, where its owner has
// more than its share: it would go with the rest.
func (c *Cache) rescue(n *name, pod uint32) {
	if n.owner == pod || pod == none || int(n.pairs) > c.settings.PerName {
		return
	}
	from, to := c.pods.of(n.owner), c.pods.of(pod)
	if (c.manyPairs(from) || c.muchText(from)) && !c.manyPairs(to) && !c.muchText(to) {
		c.hand(n, pod)
	}
}

// maxRoomless bounds the answers of one pod that wait for room: other pods'
// wait, too, and there is a bound for all.
const maxRoomless = 256

// mayWait tells whether an answer of a pod that found no room may wait for some.
func (c *Cache) mayWait(pod uint32) bool {
	return c.running && !c.retired && c.pods.of(pod).waiting < maxRoomless
}

// awaitRoom waits until there is room for an answer, and enters it, as far as
// there is. It lets go of the lock meanwhile.
func (c *Cache) awaitRoom(ctx context.Context, a *Answer, pod uint32) (full uint64, err error) {
	c.waiting++
	c.pods.of(pod).waiting++
	defer func() {
		c.waiting--
		c.pods.of(pod).waiting--
	}()
	t := time.NewTimer(patience)
	defer t.Stop()
	c.look() // it comes sooner while somebody waits
	for ended := false; ; {
		roomy := c.roomy
		c.mu.Unlock()
		select {
		case <-roomy:
		case <-t.C:
			ended = true
		case <-ctx.Done():
			ended = true
		}
		now := c.clock()
		c.mu.Lock()
		if full, err = c.enter(a, now); full == 0 || ended {
			return full, err
		}
	}
}

// madeRoom wakes those who wait for room.
func (c *Cache) madeRoom() {
	if c.waiting > 0 {
		close(c.roomy)
		c.roomy = make(chan struct{})
	}
}

// excess is what has to go: how many addresses, and bytes of text, are to be
// left in all, and how many each pod may keep, so that no pod loses any as long
// as another has more. The zero value: nothing has to.
type excess struct {
	pairs, text amount
}

type amount struct {
	some           bool
	left, keepEach int
}

// over tells how much there is more than there should be.
func (c *Cache) over() (x excess) {
	s := &c.settings
	x.pairs.some = c.pairs.len() > s.Addresses
	x.text.some = c.texts.bytes > s.textOf()
	x.pairs.left, x.text.left = s.trimmed(), s.textOf()*15/16
	if !x.pairs.some && !x.text.some {
		return x
	}
	pairs, text := []int{int(c.pods.nobody.pairs)}, []int{int(c.pods.nobody.text)}
	for i := range c.pods.list {
		pairs = append(pairs, int(c.pods.list[i].pairs))
		text = append(text, int(c.pods.list[i].text))
	}
	x.pairs.keepEach, x.text.keepEach = keepEach(pairs, x.pairs.left), keepEach(text, x.text.left)
	return x
}

// keepEach is the largest number such that no more than sum is left if nobody
// keeps more than that.
func keepEach(has []int, sum int) int {
	slices.Sort(has)
	for i, n := range has {
		if each := sum / (len(has) - i); n > each {
			return each
		}
		sum -= n
	}
	return math.MaxInt
}

func (a *amount) over(is int) bool { return a.some && is > a.left }

// much tells whether something still has to go.
func (c *Cache) much(x *excess) bool {
	return x.pairs.over(c.pairs.len()) || x.text.over(c.texts.bytes)
}

// tooMuch tells whether a pod has to give something up.
func (c *Cache) tooMuch(x *excess, pod uint32) bool {
	e := c.pods.of(pod)
	return x.pairs.over(c.pairs.len()) && int(e.pairs) > x.pairs.keepEach ||
		x.text.over(c.texts.bytes) && int(e.text) > x.text.keepEach
}

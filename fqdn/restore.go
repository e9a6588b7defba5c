package fqdn

import (
	"cmp"
	"errors"
	"io"
	"slices"
)

// restore begins with the newest checkpoint that is whole and of use.
func (c *Cache) restore() {
	type found struct {
		file int
		header
	}
	var list []found
	for i, f := range c.files {
		if f == nil {
			continue
		}
		h, err := readHeader(f)
		switch {
		case err == nil:
			list = append(list, found{i, h})
			c.sequence = max(c.sequence, h.sequence)
		case !errors.Is(err, errNoCheckpoint):
			c.log.Warn("a checkpoint of names is ignored", "file", i, "error", err)
		}
	}
	slices.SortFunc(list, func(a, b found) int { return cmp.Compare(b.sequence, a.sequence) })
	for _, x := range list {
		if c.start.Sub(x.saved) > c.settings.MaxTTL {
			c.log.Warn("a checkpoint of names is ignored: it is too old", "file", x.file, "saved", x.saved)
			continue
		}
		if err := c.load(c.files[x.file], &x.header); err != nil {
			c.log.Warn("a checkpoint of names is ignored", "file", x.file, "error", err)
			c.store = newStore()
			continue
		}
		c.log.Info("names are restored", "names", c.names.len(), "addresses", c.addrs.len(), "saved", x.saved)
		if fileOf(c.sequence+1) == x.file {
			c.sequence++ // what it has stays until there is another
		}
		return
	}
}

// load takes in a checkpoint. After an error what was taken in is worth
// nothing.
func (c *Cache) load(f File, h *header) error {
	d := newDecoder(namesOf(f, h), h.length)
	for {
		r, err := d.next()
		if errors.Is(err, io.EOF) {
			return d.check(h)
		}
		if err != nil {
			return err
		}
		c.loadName(r, nil)
	}
}

// loadName takes in a name, as far as there is room. It appends the addresses
// that are to be settled.
func (c *Cache) loadName(r *record, touched []uint32) []uint32 {
	now, shift, text := c.clock(), c.shift(), string(r.text)
	scope, ok := c.scopes.number(string(r.namespace))
	if !ok {
		c.counts.Full += uint64(len(r.pairs))
		return touched
	}
	defer c.scopes.tidy(scope)
	n, known := c.findName(text, scope)
	owner := none
	if len(r.pods) > 0 {
		owner = c.pods.number(r.pods[len(r.pods)-1])
	}
	for _, p := range r.pairs {
		if !c.outside(p.addr) {
			continue
		}
		if !c.room(known, owner) {
			c.counts.Full++
			continue
		}
		ip := p.addr.As16()
		a, there := c.findAddr(ip)
		if !there {
			a = c.addAddr(ip)
		}
		if !known {
			n, known = c.addName(text, scope, owner), true
		}
		at, again := c.findPair(n, a)
		if !again {
			at = c.attach(n, a, 1, now)
			touched = append(touched, a)
		}
		// Whatever the clock said then: nothing is believed for longer than a new
		// answer would be.
		pair := c.pairs.at(at)
		pair.expires = max(pair.expires, min(p.expires-shift, now+c.seconds(c.settings.MaxTTL)))
		pair.learned = max(pair.learned, min(p.learned-shift, now))
	}
	if !known {
		return touched
	}
	for i := len(r.pods) - 1; i >= 0; i-- {
		c.names.at(n).asked(c.pods.number(r.pods[i]))
	}
	return touched
}

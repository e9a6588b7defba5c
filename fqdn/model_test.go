package fqdn

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// model is what a Cache is to do, in the plainest way.
type model struct {
	names map[string]map[netip.Addr]*modelPair // behind namespace and "|"
	ids   map[identity.ID][]dnsrules.Selector
	known bool // SetNames was called
	now   int
	alive map[netip.Addr]bool
}

type modelPair struct{ expires, last int }

func (m *model) learn(a Answer) {
	for _, name := range append([]string{a.Name}, a.Chain...) {
		name = a.Namespace + "|" + name
		for _, r := range a.Records {
			if m.names[name] == nil {
				m.names[name] = map[netip.Addr]*modelPair{}
			}
			p := m.names[name][r.Addr]
			if p == nil {
				p = &modelPair{}
				m.names[name][r.Addr] = p
			}
			p.expires = max(p.expires, m.now+max(60, int(r.TTL/time.Second)))
			p.last = m.now
		}
	}
}

func (m *model) sweep() {
	for name, addrs := range m.names {
		for a, p := range addrs {
			if p.expires < m.now && !m.alive[a] {
				delete(addrs, a)
			}
		}
		if len(addrs) == 0 {
			delete(m.names, name)
		}
	}
}

// rows are the identities each address may have: that of exactly the selectors
// that match, or else any of the largest subsets.
func (m *model) rows() map[netip.Addr][]identity.ID {
	matching := map[netip.Addr]map[dnsrules.Selector]bool{}
	for name, addrs := range m.names {
		namespace, name, _ := strings.Cut(name, "|")
		for a := range addrs {
			if matching[a] == nil {
				matching[a] = map[dnsrules.Selector]bool{}
			}
			for _, list := range m.ids {
				for _, s := range list {
					if s.Namespace == namespace && s.Matches(name) {
						matching[a][s] = true
					}
				}
			}
		}
	}
	out := map[netip.Addr][]identity.ID{}
	for a, set := range matching {
		best := 0
		for id, list := range m.ids {
			inside := !slices.ContainsFunc(list, func(s dnsrules.Selector) bool { return !set[s] })
			switch {
			case !inside || len(list) < best || len(list) == 0:
			case len(list) > best:
				best, out[a] = len(list), []identity.ID{id}
			default:
				out[a] = append(out[a], id)
			}
		}
	}
	return out
}

// check compares.
func (m *model) check(r *rig) error {
	var got, want []string
	err := r.List(context.Background(), "", func(n Name) error {
		for _, a := range n.Addresses {
			got = append(got, fmt.Sprintf("%s|%s %s %d", n.Namespace, n.Name, a.Addr, a.Expires.Unix()-1_800_000_000))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, addrs := range m.names {
		for a, p := range addrs {
			want = append(want, fmt.Sprintf("%s %s %d", name, a, p.expires))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("it knows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	rows := maps.Clone(r.table.rows)
	if !m.known {
		if len(rows) > 0 {
			return fmt.Errorf("%d rows though nobody knows identities", len(rows))
		}
		return nil
	}
	for a, may := range m.rows() {
		if id := rows[a]; !slices.Contains(may, id) {
			return fmt.Errorf("%s is %d, want one of %d", a, id, may)
		}
		delete(rows, a)
	}
	if len(rows) > 0 {
		return fmt.Errorf("rows that nothing explains: %v", rows)
	}
	return r.consistent()
}

// consistent checks what holds between the parts of a cache.
func (c *Cache) consistent() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	pairs, names := 0, 0
	owned, text := make([]int, len(c.pods.list)), make([]int32, len(c.pods.list))
	for at := range c.names.end {
		n := c.names.at(at)
		if n.pairs == 0 {
			continue
		}
		names++
		if got, ok := c.findName(string(c.text(n)), n.scope); !ok || got != at {
			return fmt.Errorf("name %d is found at %d", at, got)
		}
		count := uint32(0)
		for p, before := n.first, none; p != none; p, before = c.pairs.at(p).nextName, p {
			x := c.pairs.at(p)
			if x.name != at || x.prevName != before || x.learned == 0 {
				return fmt.Errorf("pair %d of name %d is %+v", p, at, x)
			}
			if got, ok := c.findPair(at, x.addr); !ok || got != p {
				return fmt.Errorf("pair %d is found at %d", p, got)
			}
			count++
		}
		if count != n.pairs {
			return fmt.Errorf("name %d has %d pairs, not %d", at, count, n.pairs)
		}
		pairs += int(count)
		if n.owner != none {
			owned[n.owner] += int(count)
			text[n.owner] += roomFor(int(n.size))
		}
	}
	for i, n := range owned {
		if e := c.pods.of(uint32(i)); n != int(e.pairs) || text[i] != e.text {
			return fmt.Errorf("pod %d owns %d pairs with %d bytes, not %d with %d", i, n, text[i], e.pairs, e.text)
		}
	}
	addrs, byAddr := 0, 0
	sets := map[uint32]uint32{}
	for at := range c.addrs.end {
		a := c.addrs.at(at)
		if !a.used {
			continue
		}
		addrs++
		if got, ok := c.findAddr(a.ip); !ok || got != at {
			return fmt.Errorf("address %d is found at %d", at, got)
		}
		for p := a.first; p != none; p = c.pairs.at(p).nextAddr {
			if c.pairs.at(p).addr != at {
				return fmt.Errorf("pair %d of address %d is of %d", p, at, c.pairs.at(p).addr)
			}
			byAddr++
		}
		if c.u != nil && a.epoch == c.u.epoch {
			sets[a.set]++
		}
	}
	if pairs != c.pairs.len() || byAddr != pairs || names != c.names.len() || addrs != c.addrs.len() {
		return fmt.Errorf("%d names, %d addresses, %d and %d pairs, but the slabs say %d, %d, %d",
			names, addrs, pairs, byAddr, c.names.len(), c.addrs.len(), c.pairs.len())
	}
	scopes := make([]uint32, len(c.scopes.list))
	for at := range c.names.end {
		if n := c.names.at(at); n.pairs > 0 {
			scopes[n.scope]++
		}
	}
	for i, e := range c.scopes.list {
		if n, ok := c.scopes.byName[e.namespace]; e.names != scopes[i] || (i == 0 || e.names > 0) && (!ok || int(n) != i) || i > 0 && e.names == 0 && e.namespace != "" {
			return fmt.Errorf("namespace %d, %q, has %d names, not %d", i, e.namespace, e.names, scopes[i])
		}
	}
	if c.u == nil {
		return nil
	}
	cost, costs := int32(0), map[uint32]int32{}
	for _, set := range c.u.wants.sets {
		s := &c.u.sets[set]
		if !s.wanted || s.cost != c.u.costOf(set) {
			return fmt.Errorf("set %d is in the list of wants", set)
		}
		cost += s.cost
		costs[s.owner] += s.cost
	}
	for i := range c.pods.list {
		if e := &c.pods.list[i]; e.wants != costs[uint32(i)] {
			return fmt.Errorf("pod %d has wants for %d, not %d", i, costs[uint32(i)], e.wants)
		}
	}
	if cost != c.u.wants.cost || cost > maxWanted || c.pods.nobody.wants != costs[none] {
		return fmt.Errorf("wants cost %d, not %d", cost, c.u.wants.cost)
	}
	for i := range c.u.sets {
		if s := &c.u.sets[i]; s.wanted && !slices.Contains(c.u.wants.sets, uint32(i)) {
			return fmt.Errorf("set %d is wanted, but not in the list", i)
		}
		if s := &c.u.sets[i]; i > 0 && s.addrs != sets[uint32(i)] {
			return fmt.Errorf("set %d has %d addresses, not %d", i, s.addrs, sets[uint32(i)])
		} else if i > 0 && s.selectors != nil && s.addrs+s.names == 0 && !s.wanted && s.id == 0 {
			return fmt.Errorf("set %d has no use", i)
		}
	}
	return nil
}

// A cache does what the model does, whatever happens in whatever order, and a
// successor goes on as if nothing had been.
func TestModel(t *testing.T) {
	steps := 400
	if testing.Short() {
		steps = 100
	}
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			r := newRig(t, Settings{PerName: 1000})
			m := &model{names: map[string]map[netip.Addr]*modelPair{}, alive: map[netip.Addr]bool{}}
			var done []string
			for range steps {
				done = append(done, step(t, rnd, r, m))
				if err := m.check(r); err != nil {
					t.Fatalf("after %s:\n%v", strings.Join(done[max(0, len(done)-12):], "\n"), err)
				}
			}
		})
	}
}

var (
	modelSpaces = []string{"", "", "shop", "ops"}
	modelNames  = strings.Fields("a.test b.test c.test x.a.test y.a.test z.y.a.test cdn.net a.cdn.net b.cdn.net www.other.org")
	modelSels   = strings.Fields("a.test b.test x.a.test *.a.test **.a.test *.test *.cdn.net a.cdn.net *.*.net cdn* other.org www.other.org *")
)

// step does one thing to both.
func step(t *testing.T, rnd *rand.Rand, r *rig, m *model) string {
	switch n := rnd.IntN(20); {
	case n < 10:
		a := Answer{Name: modelNames[rnd.IntN(len(modelNames))], Namespace: modelSpaces[rnd.IntN(len(modelSpaces))], Pod: netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(9))})}
		for range rnd.IntN(3) {
			a.Chain = append(a.Chain, modelNames[rnd.IntN(len(modelNames))])
		}
		for range 1 + rnd.IntN(3) {
			addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(rnd.IntN(12))})
			if rnd.IntN(3) == 0 {
				addr = netip.AddrFrom16([16]byte{0x20, 1, 13: byte(rnd.IntN(2)), 15: byte(rnd.IntN(6))})
			}
			a.Records = append(a.Records, Record{addr, time.Duration(rnd.IntN(200)) * time.Second})
		}
		m.learn(a)
		if err := r.Learn(context.Background(), a); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint("learn ", a)
	case n < 14:
		d := rnd.IntN(90)
		m.now += d
		r.clock.advance(time.Duration(d) * time.Second)
		return fmt.Sprintf("%d seconds", d)
	case n < 16:
		m.alive = map[netip.Addr]bool{}
		for i := range 12 {
			if rnd.IntN(4) == 0 {
				m.alive[netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})] = true
			}
		}
		r.flows.set(slices.Collect(maps.Keys(m.alive))...)
		// What was alive within the same second counts as alive.
		m.now++
		r.clock.advance(time.Second)
		m.sweep()
		if err := r.sweep(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.tendWants(r.clockNow())
		r.tendPods()
		return fmt.Sprint("sweep ", m.alive)
	case n < 19:
		ids := map[identity.ID][]dnsrules.Selector{}
		for i := range rnd.IntN(6) {
			var list []dnsrules.Selector
			for range 1 + rnd.IntN(3) {
				s := sel(modelSels[rnd.IntN(len(modelSels))])[0]
				list = append(list, s.In(modelSpaces[rnd.IntN(len(modelSpaces))]))
			}
			slices.SortFunc(list, dnsrules.Selector.Compare)
			ids[identity.ID(300+i)] = slices.Compact(list)
		}
		m.ids, m.known = ids, true
		if err := r.SetNames(ids, nil); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint("names ", ids)
	default:
		if err := r.Save(); err != nil {
			t.Fatal(err)
		}
		r.again(r.settings)
		if m.known {
			if err := r.SetNames(m.ids, nil); err != nil {
				t.Fatal(err)
			}
		}
		return "a successor\n" + r.log.String()
	}
}

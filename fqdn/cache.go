package fqdn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// Table is the kernel's table fqdn: which identity an outside address has by
// its names. The kernel asks it only where ipcache says that an address is
// outside, so a row for a pod, a node or a service counts for nothing.
type Table interface {
	Set(netip.Addr, identity.ID) error
	// Delete of what is not there is no error.
	Delete(netip.Addr) error
	Get(netip.Addr) (id identity.ID, ok bool, err error)
	// Walk shows all rows, some at a time. Those that come or go meanwhile may be
	// shown or not.
	Walk(ctx context.Context, visit func([]Row)) error
	// Size is how many rows there can be.
	Size() int
}

// Row is one of a Table.
type Row struct {
	Addr     netip.Addr
	Identity identity.ID
}

// Flows is the kernel's table of flows.
type Flows interface {
	// Walk shows the destination of every flow that has not ended, some at a
	// time, repeats included.
	Walk(ctx context.Context, visit func([]netip.Addr)) error
}

// Options of a Cache.
type Options struct {
	Settings
	// Table is where identities are written; nil: they are only remembered.
	Table Table
	// Flows tell which addresses are in use; nil: none is.
	Flows Flows
	// Checkpoints are written in turn, so that one is whole at any time, and the
	// later whole one is read at the start. nil: nothing is kept.
	Checkpoints [2]File
	Log         *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Settings are how names are learned; what is 0 has its default.
type Settings struct {
	// MinTTL and MaxTTL bound how long an address is believed after an answer: a
	// minute, and a day.
	MinTTL, MaxTTL time.Duration
	// PerName bounds the addresses of one name (1,000), Addresses those of all
	// names (400,000); one that two names stand for counts twice. What is beyond
	// goes within seconds. Beyond PerName that is what was longest unused, but none
	// that is in use or was learned seconds ago. Beyond Addresses the pods with the
	// most of them give way, so that all pods get what they have or as much as any
	// other; theirs goes even where it is in use, but last. A pod whose names have a
	// quarter of all learns no more an eighth beyond Addresses, and nobody does a
	// quarter beyond. The same holds for the memory that the names' text takes.
	PerName, Addresses int
	// Deny are addresses that no name is to stand for, besides those that can't be
	// outside and the metadata services of clouds.
	Deny []netip.Prefix
}

const (
	defaultMinTTL    = time.Minute
	defaultMaxTTL    = 24 * time.Hour
	defaultPerName   = 1000
	defaultAddresses = 400_000
)

// normal is s with defaults, within what a table of that size holds.
func (s Settings) normal(size int) Settings {
	if s.MinTTL <= 0 {
		s.MinTTL = defaultMinTTL
	}
	if s.MaxTTL <= 0 {
		s.MaxTTL = defaultMaxTTL
	}
	s.MaxTTL = min(max(s.MaxTTL, s.MinTTL), 10*365*24*time.Hour)
	if s.PerName <= 0 {
		s.PerName = defaultPerName
	}
	if s.Addresses <= 0 {
		s.Addresses = defaultAddresses
	}
	s.Addresses = min(s.Addresses, min(size, maxPlaces/2)/5*4)
	return s
}

// most is how many addresses of names are ever held.
func (s Settings) most() int { return s.Addresses + s.Addresses/4 }

// greedy is how many there may be for pods that have more than their share to
// get more: what they learn until a look for what can go has ended.
func (s Settings) greedy() int { return s.Addresses + s.Addresses/8 }

// trimmed is how many are left where there were too many: some fewer, or the
// next answer would call for the next look.
func (s Settings) trimmed() int { return s.Addresses - s.Addresses/16 }

// textOf is how many bytes of names are held: names are made as long as can be
// only to fill memory.
func (s Settings) textOf() int { return s.Addresses*64 + 1<<16 }

// mostText is how many are ever held, but for one name.
func (s Settings) mostText() int { return s.textOf() / 8 * 9 }

// Cache is what names stand for. All methods may be called at any time by
// anybody.
type Cache struct {
	log   *slog.Logger
	table Table
	flows Flows
	files [2]File
	now   func() time.Time
	start time.Time
	base  uint32 // of the clock: seconds since the epoch at the start

	resolvers atomic.Pointer[map[policy.Server]struct{}]
	kick      chan struct{} // 1 buffered: look now whether there is too much
	setting   sync.Mutex    // held by SetNames
	saving    sync.Mutex    // held while a checkpoint is written; guards the next three
	sequence  uint64        // of the last checkpoint
	saved     bool          // that was the last one
	owner     bool          // no other process writes them
	scanning  sync.Mutex    // held while liveness is looked for

	mu sync.Mutex
	*store
	settings Settings
	u        *universe     // nil until the first SetNames
	next     *universe     // that SetNames is about to put in its place
	ids      identitySets  // of the latest SetNames
	changed  chan struct{} // closed and replaced when u has changed
	owed     bool          // some row could not be written
	retired  bool          // a successor writes the table
	doubt    uint32        // until when another process may change rows
	scanned  uint32        // when the last whole look for flows began
	blind    uint32        // since when flows can't be looked for; 0: they can
	learned  uint64        // new pairs, and those that went
	renewed  uint64        // pairs that live longer

	running bool          // Run looks for what can go
	waiting int           // answers that wait for room
	roomy   chan struct{} // closed and replaced when there is more room, if any waits

	watchers int
	news     chan struct{} // closed and replaced when there are other wants

	counts Counts
	said   map[string]string // errors that were logged, by what was done
}

// Counts are since the start.
type Counts struct {
	// Refused addresses can't be outside; Full ones found no room; Evicted ones
	// made room.
	Refused, Full, Evicted uint64
	// Waited answers waited for an identity, Narrowed ones went on without.
	Waited, Narrowed uint64
}

// ErrFull says that there is no room for another address.
var ErrFull = errors.New("too many addresses of names")

// patience is how long an answer is held back for an identity that the agent
// has yet to make. It takes it a few milliseconds, a hundred where policies are
// many; clients ask again after a second at the earliest (glibc: 5 s, musl:
// 2.5 s), so the answer comes in time even then.
const patience = 500 * time.Millisecond

// New makes a Cache that knows what the checkpoints say, and takes over the
// rows that are in the table.
func New(o Options) *Cache {
	c := &Cache{
		log: o.Log, table: o.Table, flows: o.Flows, files: o.Checkpoints, now: o.Now,
		kick: make(chan struct{}, 1), changed: make(chan struct{}), news: make(chan struct{}), roomy: make(chan struct{}),
		store: newStore(), said: map[string]string{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.table == nil {
		c.table = noTable{}
	}
	if c.flows == nil {
		c.flows = noFlows{}
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.start = c.now()
	c.base = uint32(c.start.Unix())
	c.settings = o.Settings.normal(c.table.Size())
	c.resolvers.Store(&map[policy.Server]struct{}{})
	c.restore()
	c.inherit()
	c.expel()
	return c
}

// Set changes the settings. What was learned stays as it is, but for addresses
// that are denied now.
func (c *Cache) Set(s Settings) {
	s = s.normal(c.table.Size())
	c.mu.Lock()
	same := slices.Equal(c.settings.Deny, s.Deny)
	c.settings = s
	retired := c.retired
	c.mu.Unlock()
	if !same && !retired {
		c.expel()
	}
}

// Believed tells whether all answers of this server are to be learned from, for
// the policies of all namespaces, as SetNames said.
func (c *Cache) Believed(server policy.Server) bool {
	_, ok := (*c.resolvers.Load())[unmapped(server)]
	return ok
}

func unmapped(s policy.Server) policy.Server {
	s.Addr = netip.AddrPortFrom(s.Addr.Addr().Unmap(), s.Addr.Port())
	return s
}

// Counts returns what was counted.
func (c *Cache) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

// clock is the time in seconds since the epoch, as it was at the start: it does
// not follow those who set the clock.
func (c *Cache) clock() uint32 { return c.base + uint32(c.now().Sub(c.start)/time.Second) }

// wall is what the clock's seconds are for people, and for a successor.
func (c *Cache) wall(seconds uint32) time.Time {
	now := c.now()
	return now.Add(time.Duration(int64(seconds)-int64(c.base))*time.Second - now.Sub(c.start)).Truncate(time.Second)
}

// shift is how far the clock is behind that of the wall.
func (c *Cache) shift() uint32 { return uint32(c.wall(c.base).Unix()) - c.base }

type noTable struct{}

func (noTable) Set(netip.Addr, identity.ID) error                 { return nil }
func (noTable) Delete(netip.Addr) error                           { return nil }
func (noTable) Get(netip.Addr) (id identity.ID, ok bool, _ error) { return }
func (noTable) Walk(context.Context, func([]Row)) error           { return nil }
func (noTable) Size() int                                         { return maxPlaces }

type noFlows struct{}

func (noFlows) Walk(context.Context, func([]netip.Addr)) error { return nil }

func addrOf(ip [16]byte) netip.Addr { return netip.AddrFrom16(ip).Unmap() }

func rowError(do string, ip [16]byte, err error) error {
	return fmt.Errorf("%s %s in table fqdn: %w", do, addrOf(ip), err)
}

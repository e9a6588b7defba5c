package fqdn

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// Options of a Cache.
type Options struct {
	Settings
	Log *slog.Logger
}

// Settings are how names are learned; what is 0 has its default.
type Settings struct {
	// MinTTL and MaxTTL bound how long an address is believed after an answer.
	MinTTL, MaxTTL time.Duration
	// PerName bounds the addresses of one name, Addresses those of all names:
	// one that two names stand for counts twice.
	PerName, Addresses int
}

// Cache is what names stand for. All methods may be called at any time by
// anybody.
type Cache struct{}

// New makes a Cache that knows nothing yet.
func New(Options) *Cache { return &Cache{} }

// Learn takes in an answer. It returns when the kernel's table says for each
// of its addresses who it is now: the identity of exactly those selectors that
// match one of the names the address stands for. The answer may be released
// then. An error tells what could not be entered, of an answer that may be
// released all the same: those addresses are then denied where names decide.
//
// Where there is no such identity yet, and an agent that makes some listens, it
// waits for a moment, or until ctx ends. Where nothing is new it takes a
// microsecond or two and allocates nothing.
func (c *Cache) Learn(ctx context.Context, a Answer) error { return nil }

// SetNames replaces the identities that addresses can have, with the selectors
// each stands for, and the servers that are believed. It returns when the
// kernel's table holds no other identity, and every address has the one that
// its names now ask for.
func (c *Cache) SetNames(ids map[identity.ID][]dnsrules.Selector, resolvers []netip.Addr) error {
	return nil
}

// Believed tells whether any answer of this server is to be learned from, as
// SetNames said.
func (c *Cache) Believed(server netip.Addr) bool { return false }

// List calls each for every name that contains match ("" every name), in no
// order, until it returns an error.
func (c *Cache) List(ctx context.Context, match string, each func(Name) error) error { return nil }

// Run does what time brings until ctx ends: expiry, liveness, checkpoints.
func (c *Cache) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

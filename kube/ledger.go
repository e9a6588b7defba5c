package kube

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/weirnet/weir/policy/api"
)

// leaveOutAfter is how long policies of a kind are asked for before all others
// are enforced without them, if the API server answers with errors. A kind that
// it forbids is not waited for: that stays so until somebody is told.
const leaveOutAfter = 30 * time.Second

// ledger notes which kinds what is in force was made of, for a successor: where
// one of them can't be read, nothing must change. Any other can be left out.
type ledger struct {
	path    string
	log     *slog.Logger
	all     bool     // not known: as if of all
	kinds   []string // ordered
	written bool
}

// openLedger reads what a predecessor noted. inForce: it left something.
func openLedger(path string, inForce bool, log *slog.Logger) *ledger {
	l := &ledger{path: path, log: log}
	if !inForce {
		return l
	}
	text, err := os.ReadFile(path)
	if err != nil {
		if l.all = true; !errors.Is(err, fs.ErrNotExist) {
			log.Warn("which kinds of policies are in force is not known", "error", err)
		}
		return l
	}
	l.kinds = strings.Fields(string(text))
	return l
}

// has tells whether what is in force may be of a kind.
func (l *ledger) has(kind string) bool { return l.all || slices.Contains(l.kinds, kind) }

// note says that from now on what is in force is made of these kinds, ordered.
func (l *ledger) note(kinds []string) {
	if l.written && slices.Equal(l.kinds, kinds) {
		return
	}
	fresh := l.path + ".new"
	err := os.WriteFile(fresh, []byte(strings.Join(kinds, "\n")+"\n"), 0o600)
	if err == nil {
		err = os.Rename(fresh, l.path)
	}
	l.all, l.kinds, l.written = false, kinds, err == nil
	if err == nil {
		return
	}
	l.log.Warn("which kinds of policies are in force can't be noted for a successor", "error", err)
	// Without a note it takes them all to be.
	if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Error("an old note of which kinds of policies are in force can't be removed", "error", err)
	}
}

// Continue tells what this node is in force of, once that is known: inForce,
// that a predecessor left anything, and the file where agents note of which kinds.
// From then on policies of a kind that can't be read, and of which nothing is in
// force, don't keep all others from being enforced: they are left out, and the
// Report says so. Without a call everything has to be read first.
func (c *Cluster) Continue(file string, inForce bool) {
	o := c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ledger = openLedger(file, inForce, o.log)
	if o.started {
		o.ledger.note(o.known()) // the sink has not taken anything yet
	}
	o.tell()
}

// known lists the kinds that were read, ordered. mu is held.
func (o *outbox) known() []string {
	var out []string
	for _, in := range o.inboxes {
		if in.status.Known {
			out = append(out, in.kind)
		}
	}
	slices.Sort(out)
	return out
}

// leaveOut leaves out the kinds that can't be read, if it may be done without all
// of them. mu is held.
func (o *outbox) leaveOut() bool {
	if o.ledger == nil {
		return false
	}
	var out []*inbox
	for _, in := range o.inboxes {
		if in.status.read() {
			continue
		}
		if !in.hopeless() || o.ledger.has(in.kind) {
			return false
		}
		out = append(out, in)
	}
	for _, in := range out {
		in.status.LeftOut = true
		o.log.Error("POLICIES OF A KIND ARE NOT ENFORCED, since they can't be read; all others are", "kind", in.kind, "error", in.status.Error)
	}
	return true
}

// hopeless tells whether everything else may go on without the kind: it holds
// policies, and there is no prospect of them. Who is who must be known in any
// case, and where the API server is, which no policy may cut off.
func (in *inbox) hopeless() bool {
	switch in.kind {
	case api.KindNetworkPolicy, api.KindCiliumPolicy, api.KindClusterwide, api.KindCiliumCIDRGroup:
	default:
		return false
	}
	return in.status.Denied || in.status.Error != "" && time.Since(in.status.Since) > leaveOutAfter
}

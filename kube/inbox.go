package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"reflect"
	"strconv"
	"time"

	"github.com/weirnet/weir/policy"
)

// feed brings the objects of one kind to an inbox until ctx is done: first all
// there are, then what changes. A watch of the API server is one; what gathers
// objects for many nodes could be another.
type feed interface {
	run(ctx context.Context, in *inbox)
	// look asks what there is now: versions by name, and that of the whole.
	look(ctx context.Context) (versions map[name]string, at string, err error)
	// prod says that a kind that was missing may be there.
	prod()
}

// inbox holds the objects of one kind as they are now. One goroutine, its
// feed's, writes to it.
type inbox struct {
	kind string
	out  *outbox

	// Of the feed alone: what the policies said last, by their text.
	sums map[name][sha256.Size]byte

	// Guarded by out.mu.
	objects  map[name]entry
	problems map[name][]Problem
	count    int // of objects that have a value
	refused  int
	status   Watch
	at       string // the version up to which the feed has brought everything
}

// entry is an object that is there.
type entry struct {
	version string
	value   any // nil: counts as absent
}

func newInbox(kind string, out *outbox) *inbox {
	return &inbox{
		kind: kind, out: out, sums: map[name][sha256.Size]byte{},
		objects: map[name]entry{}, problems: map[name][]Problem{},
		status: Watch{Kind: kind, Since: time.Now()},
	}
}

func (in *inbox) key(n name) policy.Object {
	return policy.Object{Kind: in.kind, Namespace: n.namespace, Name: n.name}
}

// set takes an object that is new or may have changed.
func (in *inbox) set(i *item) {
	value, problems := in.read(i)
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	in.reached(i.version)
	in.put(i, value, problems)
}

// reached notes that everything up to a version has come.
func (in *inbox) reached(version string) {
	in.at, in.status.Heard = version, time.Now()
	in.out.tell()
}

// read makes the value of an item: the one that is held if it is equal, so that
// only what differs counts as changed.
func (in *inbox) read(i *item) (value any, problems []Problem) {
	held := in.objects[i.name].value // nobody else writes
	switch {
	case i.err != nil:
		return held, []Problem{{
			Kind: BrokenObject, Object: Name(in.key(i.name)), Message: i.err.Error(), Fallback: held != nil,
		}}
	case i.text == nil:
		if held != nil && reflect.DeepEqual(held, i.value) {
			return held, nil
		}
		return i.value, nil
	}
	sum := sha256.Sum256(i.text)
	if old, ok := in.sums[i.name]; ok && old == sum {
		return held, in.problems[i.name]
	}
	in.sums[i.name] = sum
	return decodePolicy(in.key(i.name), i.text)
}

// reuse puts the value that is held in place of an equal one.
func (in *inbox) reuse(i *item) *item {
	if held := in.objects[i.name].value; held != nil && i.text == nil && reflect.DeepEqual(held, i.value) {
		i.value = held
	}
	return i
}

func (in *inbox) put(i *item, value any, problems []Problem) {
	old := in.objects[i.name]
	in.objects[i.name] = entry{i.version, value}
	in.problem(i.name, problems)
	in.counted(old.value, value)
	if old.value != value {
		in.out.changed(in.key(i.name), value)
	}
}

// remove takes an object away, which is gone since the item's version.
func (in *inbox) remove(i *item) {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	in.reached(i.version)
	in.drop(i.name)
}

func (in *inbox) drop(n name) {
	old, ok := in.objects[n]
	if !ok {
		return
	}
	delete(in.objects, n)
	delete(in.sums, n)
	in.problem(n, nil)
	in.counted(old.value, nil)
	if old.value != nil {
		in.out.changed(in.key(n), nil)
	}
}

func (in *inbox) problem(n name, problems []Problem) {
	if len(problems) == 0 {
		delete(in.problems, n)
		return
	}
	in.problems[n] = problems
}

func (in *inbox) counted(old, value any) {
	if old != nil {
		in.count--
		if refused(old) {
			in.refused--
		}
	}
	if value != nil {
		in.count++
		if refused(value) {
			in.refused++
		}
	}
}

// keep makes all be everything there is at a version, in one step.
func (in *inbox) keep(all map[name]*item, version string) {
	type made struct {
		value    any
		problems []Problem
	}
	values := make(map[name]made, len(all))
	for n, i := range all {
		v, p := in.read(i)
		values[n] = made{v, p}
	}
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	for n := range in.objects {
		if all[n] == nil {
			in.drop(n)
		}
	}
	for n, i := range all {
		in.put(i, values[n].value, values[n].problems)
	}
	in.status.Known, in.status.Missing, in.status.LeftOut = true, false, false
	in.fresh()
	in.reached(version)
}

func (in *inbox) fresh() {
	in.status.Since, in.status.Error, in.status.Denied = time.Time{}, "", false
	in.out.tell()
}

// absent says that the cluster has no such kind. What was held is gone.
func (in *inbox) absent() {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	for n := range maps.Clone(in.objects) {
		in.drop(n)
	}
	in.status.Known, in.status.Missing, in.status.LeftOut = false, true, false
	in.fresh()
}

// unnoticed says why nobody would tell that a missing kind has come.
func (in *inbox) unnoticed(err error) {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	if in.status.Missing {
		in.failed(err)
	}
}

// late says why what is held is not up to date.
func (in *inbox) late(err error) {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	if in.status.Since.IsZero() {
		in.status.Since = time.Now()
	}
	in.failed(err)
	if in.status.Denied && in.status.Missing {
		// Nobody can tell. Once everything else is in force that was without it.
		in.status.Missing, in.status.LeftOut = false, in.out.started
	}
}

func (in *inbox) failed(err error) {
	denied := (*deniedError)(nil)
	in.status.Error, in.status.Denied = err.Error(), errors.As(err, &denied)
	in.out.tell()
}

// followed says that what is held is followed again.
func (in *inbox) followed() {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	in.fresh()
}

// bookmark notes that nothing else has changed up to a version.
func (in *inbox) bookmark(version string) {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	in.reached(version)
}

// again counts that the feed had to begin anew: at the version it had reached,
// or with everything.
func (in *inbox) again(everything bool) {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	switch {
	case in.status.Missing:
	case everything:
		in.status.Relists++
	default:
		in.status.Restarts++
	}
}

// behind tells whether anything in a list of versions is newer than what is
// held, or what it does not have any more is held still. out.mu is held.
func (in *inbox) behind(versions map[name]string, at string) bool {
	if !in.status.Known {
		return true
	}
	for n, v := range versions {
		if e, ok := in.objects[n]; ok && !older(e.version, v) {
			continue
		} else if !ok && !older(in.at, v) {
			continue // it came, and is gone since
		}
		return true
	}
	for n, e := range in.objects {
		if _, ok := versions[n]; !ok && !older(at, e.version) {
			return true
		}
	}
	return false
}

// older tells whether a is an earlier resource version than b. They are
// numbers by Kubernetes' word; what is none is only equal to itself.
func older(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	if errX != nil || errY != nil {
		return a != b
	}
	return x < y
}

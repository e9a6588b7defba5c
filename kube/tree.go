package kube

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/weirnet/weir/policy"
)

// tree is what was read of a directory and what of it was handed on.
type tree struct {
	files map[string]*file
	dirs  []string
	held  map[policy.Object]any // accepted by the sink
	want  map[policy.Object]any // read, merged over all files
	// clashes are the objects that two documents claim.
	clashes   []Problem
	delivered bool
	memory    *memory
}

// file is one file as it was read last, or as it was valid last.
type file struct {
	sig      signature
	sum      [sha256.Size]byte
	seen     bool // text was read at least once
	docs     []*document
	valid    bool      // docs are of this or an earlier valid content
	broken   []Problem // why the present content is not in force
	writing  time.Time // since when somebody has it open
	vanished time.Time // since when it is not there
}

// document is one YAML document, decoded. It is never changed: equal text at
// the same place is the same document, so its objects are known to be equal.
type document struct {
	number, line int // from 1
	sum          [sha256.Size]byte
	objects      []object
	problems     []problem
	unknown      int // objects of kinds that mean nothing here
}

// object is one object of a document.
type object struct {
	key   policy.Object
	value any // as in policy.Change; nil: counts as absent
	line  int
	// broken: it could not be read, its last valid state stays.
	broken bool
}

const (
	// grace is how long a file may be away, as between the two renames of an
	// editor, before its objects go.
	grace = 20 * time.Millisecond
	// held is how long a file that somebody has open for writing is left
	// alone; then it is read as it is.
	writeLimit = time.Second
	// poll is how often such a file is looked at.
	poll = 4 * time.Millisecond
)

func newTree(m *memory) tree {
	return tree{files: map[string]*file{}, held: map[policy.Object]any{}, memory: m}
}

// read brings the tree up to date. A wait other than 0 says that something
// is in the middle of a change and when to read again. On error everything
// stays as it was.
func (t *tree) read(root string, now time.Time) (wait time.Duration, err error) {
	l, err := list(root)
	if err != nil {
		return 0, err
	}
	t.dirs = l.dirs
	for path, sig := range l.files {
		f := t.files[path]
		if f == nil {
			f = &file{}
			t.files[path] = f
		}
		f.vanished = time.Time{}
		if f.seen && f.sig == sig && sig.settled(now) {
			continue
		}
		if f.load(path, now, t.memory) {
			wait = poll
		}
	}
	removed := false
	for path, f := range t.files {
		if _, ok := l.files[path]; ok {
			continue
		}
		if f.vanished.IsZero() {
			f.vanished = now
		}
		if left := grace - now.Sub(f.vanished); left > 0 && f.valid {
			wait = max(min(wait, left), poll)
			continue
		}
		delete(t.files, path)
		removed = true
	}
	if removed || !t.delivered && wait == 0 {
		t.memory.forget(t.files)
	}
	t.merge()
	return wait, nil
}

// load reads the file; busy says that it must be looked at again soon.
func (f *file) load(path string, now time.Time, m *memory) (busy bool) {
	text, sig, err := readStable(path)
	if errors.Is(err, errWriting) {
		if f.writing.IsZero() {
			f.writing = now
		}
		if now.Sub(f.writing) < writeLimit {
			return true
		}
		text, err = os.ReadFile(path)
		if err == nil {
			sig, _, err = sign(path)
		}
	} else {
		f.writing = time.Time{}
	}
	if err != nil {
		f.seen = false // try again at the next read
		f.broken = []Problem{{File: path, Kind: BrokenFile, Message: err.Error()}}
		f.restore(path, m)
		return false
	}
	sum := sha256.Sum256(text)
	if f.seen && sum == f.sum {
		f.sig = sig
		return false
	}
	f.sig, f.sum, f.seen = sig, sum, true
	if len(bytes.TrimSpace(text)) == 0 {
		f.restore(path, m)
	}
	if f.valid && len(f.docs) > 0 && len(bytes.TrimSpace(text)) == 0 {
		f.broken = []Problem{{File: path, Kind: BrokenFile, Message: "the file is empty; to take its objects away, delete it"}}
		return false
	}
	docs, broken := decodeFile(path, text, f.docs)
	f.broken = broken
	if len(broken) == 0 {
		f.docs, f.valid = docs, true
		m.keep(path, text)
		return false
	}
	if f.restore(path, m); !f.valid {
		f.docs = docs // better than nothing; the report says it is incomplete
	}
	return false
}

// restore takes what was valid before this process started, if nothing was
// since.
func (f *file) restore(path string, m *memory) {
	if f.valid {
		return
	}
	if text := m.recall(path); text != nil {
		if docs, broken := decodeFile(path, text, nil); len(broken) == 0 {
			f.docs, f.valid = docs, true
		}
	}
}

// merge computes what is wanted: the first document with an object counts.
func (t *tree) merge() {
	t.want = make(map[policy.Object]any, len(t.want))
	t.clashes = nil
	type place struct {
		file string
		line int
	}
	first := make(map[policy.Object]place, len(t.held))
	for _, path := range t.paths() {
		for _, d := range t.files[path].docs {
			for _, o := range d.objects {
				if o.key.Name == "" {
					// A policy that is refused for having none; what it closes
					// needs a key of its own all the same.
					o.key.Name = fmt.Sprintf("(%s:%d)", path, o.line)
				}
				if at, dup := first[o.key]; dup {
					t.clashes = append(t.clashes, Problem{
						File: path, Document: d.number, Line: o.line, Kind: Duplicate, Object: Name(o.key),
						Message: fmt.Sprintf("is already in %s:%d, which counts", at.file, at.line),
					})
					continue
				}
				first[o.key] = place{path, o.line}
				v := o.value
				if o.broken {
					v = t.held[o.key]
				}
				if v != nil {
					t.want[o.key] = v
				}
			}
		}
	}
}

func (t *tree) paths() []string {
	paths := make([]string, 0, len(t.files))
	for p := range t.files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

// changes is what is wanted less what is held, in a fixed order.
func (t *tree) changes() []policy.Change {
	var out []policy.Change
	for key, v := range t.want {
		if t.held[key] != v { // pointers: equal documents are the same
			out = append(out, policy.Change{Object: key, Value: v})
		}
	}
	for key := range t.held {
		if _, ok := t.want[key]; !ok {
			out = append(out, policy.Change{Object: key})
		}
	}
	sortChanges(out)
	return out
}

// accept notes that the changes were taken.
func (t *tree) accept() {
	t.held = t.want
	t.delivered = true
}

package fqdn

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// When a checkpoint is due, as long as writing has less than one part of
// saveShare of the time.
const (
	saveLearned = time.Second      // after something new
	saveRenewed = 15 * time.Second // where addresses only live longer
	saveShare   = 20
)

// saving is what is known of the last checkpoint.
type saving struct {
	at               time.Time
	took             time.Duration
	learned, renewed uint64
}

// save writes a checkpoint if one is due.
func (r *runner) save() {
	c, last := r.Cache, &r.saving
	c.mu.Lock()
	learned, renewed := c.learned, c.renewed
	c.mu.Unlock()
	since := time.Since(last.at)
	if since < last.took*saveShare || (learned == last.learned || since < saveLearned) && (renewed == last.renewed || since < saveRenewed) {
		return
	}
	began := time.Now()
	err := c.Save()
	if errors.Is(err, errOthers) {
		return
	}
	r.note("write a checkpoint", err)
	*last = saving{at: time.Now(), took: time.Since(began), learned: learned, renewed: renewed}
}

// errOthers: a predecessor that still runs has the checkpoints.
var errOthers = errors.New("another process writes the checkpoints")

// Save writes a checkpoint now, unless another process still writes them, which
// is an error. After Retire it does nothing.
func (c *Cache) Save() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	if c.saved || c.files == [2]File{} {
		return nil
	}
	if !c.own() {
		return errOthers
	}
	if err := c.writeCheckpoint(); err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	return nil
}

// Retire leaves the table and the checkpoints to a successor: it writes a last
// checkpoint, which the successor begins with, and from then on no other; it
// changes no row, and forgets nothing. What is learned is still written where
// there is no row yet, so that answers to old questions can be used.
func (c *Cache) Retire() error {
	c.mu.Lock()
	c.retired = true
	c.mu.Unlock()
	err := c.Save()
	c.saving.Lock()
	defer c.saving.Unlock()
	c.saved = true
	if c.owner {
		unlock(c.files[0])
	}
	return err
}

// own tells whether the checkpoints are this process's to write. c.saving is
// held.
func (c *Cache) own() bool {
	if c.owner || !lock(c.files[0]) {
		return c.owner
	}
	c.owner = true
	for _, f := range c.files {
		if f != nil {
			h, _ := readHeader(f) // of one that is none: 0
			c.sequence = max(c.sequence, h.sequence)
		}
	}
	return true
}

// lock takes a file's lock, which a process has until it unlocks or ends. Where
// there are no locks, there is nobody else.
func lock(f File) bool { return !errors.Is(flock(f, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK) }

func unlock(f File) { _ = flock(f, unix.LOCK_UN) }

func flock(f File, how int) error {
	file, ok := f.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = unix.Flock(int(fd), how) }); e != nil {
		return e
	}
	return err
}

// writeCheckpoint writes to the file that was not written the last time; the
// other one stays whole whatever happens. c.saving is held.
func (c *Cache) writeCheckpoint() error {
	f := c.files[fileOf(c.sequence+1)]
	if f == nil {
		return nil
	}
	// The header comes last; until then the one that is there has another sum.
	h := header{sequence: c.sequence + 1, saved: c.now()}
	sum := sha256.New()
	err := c.encode(func(b []byte) error {
		sum.Write(b)
		n, err := f.WriteAt(b, headerSize+h.length)
		h.length += int64(n)
		return err
	})
	if err != nil {
		return err
	}
	sum.Write(h.append(nil)[:headerSummed])
	copy(h.sum[:], sum.Sum(nil))
	if err := errors.Join(f.Truncate(headerSize+h.length), f.Sync()); err != nil {
		return err
	}
	if _, err := f.WriteAt(h.append(nil), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	c.sequence++
	return nil
}

func fileOf(sequence uint64) int { return int(sequence % 2) }

// encode gives write all names, some at a time.
func (c *Cache) encode(write func([]byte) error) error {
	var b []byte
	var r record
	shift := c.shift()
	for at, end := uint32(0), false; !end; {
		b = b[:0]
		c.mu.Lock()
		for n := 0; n < stepPlaces && at < c.names.end; n++ {
			if name := c.names.at(at); name.pairs > 0 {
				c.record(name, &r, shift)
				b = r.append(b)
				n += int(name.pairs)
			}
			at++
		}
		end = at >= c.names.end
		c.mu.Unlock()
		if err := write(b); err != nil {
			return err
		}
	}
	return nil
}

// record tells what is known of a name, with times moved by shift.
func (c *Cache) record(n *name, r *record, shift uint32) {
	r.text, r.pods, r.pairs = c.text(n), r.pods[:0], r.pairs[:0]
	r.namespace = append(r.namespace[:0], c.scopes.list[n.scope].namespace...)
	for _, p := range n.pods {
		if p != none {
			r.pods = append(r.pods, c.pods.list[p].addr)
		}
	}
	for p := n.first; p != none; p = c.pairs.at(p).nextName {
		pair := c.pairs.at(p)
		r.pairs = append(r.pairs, recordPair{
			addr:    addrOf(c.addrs.at(pair.addr).ip),
			expires: pair.expires + shift, learned: pair.learned + shift,
		})
	}
}

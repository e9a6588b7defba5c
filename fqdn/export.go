package fqdn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxPart bounds a part of an export: a step's worth of names, the last of which
// may have as many addresses as can be.
const maxPart = 64 << 20

// exportVersion begins an export, so that a process that writes names in another
// way is found out: no part is so large.
const exportVersion = 1<<31 | checkpointVersion

// Export writes all names with their addresses for another process's Import. It
// leaves the table and the checkpoints as they are.
func (c *Cache) Export(w io.Writer) error {
	_, err := w.Write(binary.LittleEndian.AppendUint32(nil, exportVersion))
	if err == nil {
		err = c.encode(func(b []byte) error {
			if len(b) == 0 {
				return nil
			}
			return writePart(w, b)
		})
	}
	if err == nil {
		err = writePart(w, nil)
	}
	if err != nil {
		return fmt.Errorf("export names: %w", err)
	}
	return nil
}

func writePart(w io.Writer, b []byte) error {
	if _, err := w.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(b)))); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// Import adds what another process exported to what is known, as if its answers
// had come here, and reads no byte more. What that process does to the table
// until it retires is put right. What was taken in before an error stays.
func (c *Cache) Import(r io.Reader) error {
	defer func() {
		c.verify()
		c.mu.Lock()
		c.doubt = c.clock() + doubtFor
		c.mu.Unlock()
	}()
	if v, err := readWord(r); err != nil {
		return fmt.Errorf("import names: %w", err)
	} else if v != exportVersion {
		return fmt.Errorf("import names: they begin with %#x, those of this version with %#x", v, uint32(exportVersion))
	}
	for {
		n, err := readWord(r)
		if err != nil {
			return fmt.Errorf("import names: %w", err)
		}
		if n == 0 {
			return nil
		}
		if n > maxPart {
			return fmt.Errorf("import names: a part of %d bytes", n)
		}
		if err := c.importPart(io.LimitReader(r, int64(n)), int64(n)); err != nil {
			return fmt.Errorf("import names: %w", err)
		}
	}
}

func readWord(r io.Reader) (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(r, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

// verify writes what another process has changed in the table.
func (c *Cache) verify() {
	c.through(func() uint32 { return c.addrs.end }, func(at uint32) int {
		a := c.addrs.at(at)
		if !a.used || a.written == 0 {
			return 1
		}
		id, _, err := c.table.Get(addrOf(a.ip))
		if err == nil && uint32(id) != a.written {
			a.written = uint32(id)
			_, err = c.settle(at, c.clock(), true)
		}
		if err != nil {
			c.owed = true
		}
		return writeWork
	}, nil)
}

func (c *Cache) importPart(r io.Reader, n int64) error {
	d := newDecoder(r, n)
	for {
		rec, err := d.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		// What can't be written now is tried again.
		for _, at := range c.loadName(rec, nil) {
			_, _ = c.settle(at, c.clock(), true)
		}
		c.mu.Unlock()
	}
}

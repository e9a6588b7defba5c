package fqdn

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/netip"
	"time"
)

// File is what a checkpoint is kept in; *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(int64) error
	Sync() error
}

// A checkpoint is a header and then the names, each with what is known of it:
//
//	header  magic  version  sequence  saved  length  sum
//	name    length  text  length  namespace  pods  {address}  pairs  {address  expires  learned}
//
// Numbers are little-endian in the header, and for times (seconds since the
// epoch); lengths and counts are varints. An address is its length and its
// bytes. length is that of all names; sum is SHA-256 of the names and then the
// header before it. The file ends with the names.
const (
	checkpointMagic   = "weirfqdn"
	checkpointVersion = 2
	headerSize        = 8 + 4 + 8 + 8 + 8 + sha256.Size
	headerSummed      = headerSize - sha256.Size
	// maxCheckpoint bounds what is read; no Settings make one so large.
	maxCheckpoint = 1 << 30
)

// header is what a checkpoint says of itself.
type header struct {
	sequence uint64
	saved    time.Time
	length   int64
	sum      [sha256.Size]byte
}

var errNoCheckpoint = errors.New("no checkpoint was written yet")

func (h *header) append(to []byte) []byte {
	to = append(to, checkpointMagic...)
	to = binary.LittleEndian.AppendUint32(to, checkpointVersion)
	to = binary.LittleEndian.AppendUint64(to, h.sequence)
	to = binary.LittleEndian.AppendUint64(to, uint64(h.saved.Unix()))
	to = binary.LittleEndian.AppendUint64(to, uint64(h.length))
	return append(to, h.sum[:]...)
}

// readHeader reads a header, and checks what can be checked without the names.
func readHeader(f io.ReaderAt) (h header, err error) {
	var b [headerSize]byte
	n, err := f.ReadAt(b[:], 0)
	if n == 0 && errors.Is(err, io.EOF) {
		return h, errNoCheckpoint
	}
	if n < len(b) {
		return h, fmt.Errorf("read a checkpoint's header: %w", err)
	}
	if string(b[:8]) != checkpointMagic {
		return h, errors.New("it is no checkpoint")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != checkpointVersion {
		return h, fmt.Errorf("it is of version %d, this is %d", v, checkpointVersion)
	}
	h.sequence = binary.LittleEndian.Uint64(b[12:])
	h.saved = time.Unix(int64(binary.LittleEndian.Uint64(b[20:])), 0)
	h.length = int64(binary.LittleEndian.Uint64(b[28:]))
	copy(h.sum[:], b[headerSummed:])
	if h.length < 0 || h.length > maxCheckpoint {
		return h, fmt.Errorf("it is to have %d bytes", uint64(h.length))
	}
	if n, err := f.ReadAt(b[:1], headerSize+h.length); n != 0 || !errors.Is(err, io.EOF) {
		return h, errors.Join(errors.New("it does not end where it should"), err)
	}
	return h, nil
}

// record is a name in a checkpoint.
type record struct {
	text, namespace []byte
	pods            []netip.Addr
	pairs           []recordPair
}

type recordPair struct {
	addr             netip.Addr
	expires, learned uint32
}

func (r *record) append(to []byte) []byte {
	to = binary.AppendUvarint(to, uint64(len(r.text)))
	to = append(to, r.text...)
	to = binary.AppendUvarint(to, uint64(len(r.namespace)))
	to = append(to, r.namespace...)
	to = append(to, byte(len(r.pods)))
	for _, p := range r.pods {
		to = appendAddr(to, p)
	}
	to = binary.AppendUvarint(to, uint64(len(r.pairs)))
	for _, p := range r.pairs {
		to = appendAddr(to, p.addr)
		to = binary.LittleEndian.AppendUint32(to, p.expires)
		to = binary.LittleEndian.AppendUint32(to, p.learned)
	}
	return to
}

func appendAddr(to []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(append(to, 4), b[:]...)
	}
	b := a.As16()
	return append(append(to, 16), b[:]...)
}

// decoder reads the names of a checkpoint one by one.
type decoder struct {
	in    *bufio.Reader
	left  int64 // bytes
	sum   hash.Hash
	one   [1]byte
	text  [maxName]byte
	space [maxNamespace]byte
	rec   record
}

// newDecoder reads names of so many bytes in all.
func newDecoder(r io.Reader, length int64) *decoder {
	return &decoder{in: bufio.NewReaderSize(r, 64<<10), left: length, sum: sha256.New()}
}

// namesOf is a checkpoint without its header.
func namesOf(f io.ReaderAt, h *header) io.Reader { return io.NewSectionReader(f, headerSize, h.length) }

// next returns the next name, which is valid until the one after; io.EOF: that
// was all. Only then it is known whether the sum is right (check).
func (d *decoder) next() (*record, error) {
	if d.left == 0 {
		return nil, io.EOF
	}
	n, err := d.count(maxName)
	if err != nil {
		return nil, err
	}
	r := &d.rec
	r.text = d.text[:n]
	if err := d.read(r.text); err != nil {
		return nil, err
	}
	if n, err = d.count(maxNamespace); err != nil {
		return nil, err
	}
	r.namespace = d.space[:n]
	if err := d.read(r.namespace); err != nil {
		return nil, err
	}
	if n, err = d.count(keptPods); err != nil {
		return nil, err
	}
	r.pods, r.pairs = r.pods[:0], r.pairs[:0]
	for range n {
		a, err := d.addr()
		if err != nil {
			return nil, err
		}
		r.pods = append(r.pods, a)
	}
	// A pair has 13 bytes at least, so what is left bounds what is made.
	if n, err = d.count(d.left / 13); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errors.New("a name without addresses")
	}
	for range n {
		p := recordPair{}
		if p.addr, err = d.addr(); err != nil {
			return nil, err
		}
		var b [8]byte
		if err := d.read(b[:]); err != nil {
			return nil, err
		}
		p.expires, p.learned = binary.LittleEndian.Uint32(b[:]), binary.LittleEndian.Uint32(b[4:])
		r.pairs = append(r.pairs, p)
	}
	return r, nil
}

// check tells whether what was read has the sum it should have.
func (d *decoder) check(h *header) error {
	d.sum.Write(h.append(nil)[:headerSummed])
	if [sha256.Size]byte(d.sum.Sum(nil)) != h.sum {
		return errors.New("it is damaged: its sum is wrong")
	}
	return nil
}

var errShort = errors.New("it is damaged: a name goes beyond the end")

func (d *decoder) read(b []byte) error {
	if int64(len(b)) > d.left {
		return errShort
	}
	if _, err := io.ReadFull(d.in, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it is damaged: it ends too early")
	} else if err != nil {
		return fmt.Errorf("read a checkpoint: %w", err)
	}
	d.left -= int64(len(b))
	d.sum.Write(b)
	return nil
}

// ReadByte implements io.ByteReader.
func (d *decoder) ReadByte() (byte, error) {
	err := d.read(d.one[:])
	return d.one[0], err
}

func (d *decoder) count(most int64) (int, error) {
	n, err := binary.ReadUvarint(d)
	if err != nil {
		return 0, err
	}
	if n > uint64(most) {
		return 0, fmt.Errorf("it is damaged: %d where %d at most can be", n, most)
	}
	return int(n), nil
}

func (d *decoder) addr() (netip.Addr, error) {
	var b [17]byte
	if err := d.read(b[:1]); err != nil {
		return netip.Addr{}, err
	}
	if b[0] != 4 && b[0] != 16 {
		return netip.Addr{}, fmt.Errorf("it is damaged: an address of %d bytes", b[0])
	}
	if err := d.read(b[1 : 1+b[0]]); err != nil {
		return netip.Addr{}, err
	}
	a, _ := netip.AddrFromSlice(b[1 : 1+b[0]])
	return a, nil
}

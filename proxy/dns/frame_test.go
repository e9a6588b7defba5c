package dns

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSmallSegments: a message that comes byte by byte is given up to be dealt
// with when it is whole, and not looked at, and copied, for each byte.
func TestSmallSegments(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	closed := false
	end := func() {
		if !closed {
			closed = true
			unix.Close(pair[1])
		}
	}
	defer end()
	in := &input{memory: &pool[scratch]{kept: 1}}
	fd := uintptr(pair[0])
	var got [][]byte
	deliveries := 0
	// take does what stream.serve does with what has come.
	take := func() (over bool) {
		for in.receive(fd) {
			sc := in.scratch
			in.scratch = nil
			if in.n == 0 {
				in.memory.release(sc)
				return true
			}
			deliveries++
			b, at := sc.in[:in.n], 0
			for {
				m, size := frame(b[at:])
				if size == 0 {
					break
				}
				got = append(got, bytes.Clone(m))
				at += size
			}
			in.keep(sc, b[at:], at > 0)
		}
		return false
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 4000)
	stream := binary.BigEndian.AppendUint16(nil, uint16(len(large)))
	stream = append(append(stream, large...), 0, 3, 'x', 'y', 'z', 0, 0, 0, 1)
	for _, c := range stream {
		if _, err := unix.Write(pair[1], []byte{c}); err != nil {
			t.Fatal(err)
		}
		if take() {
			t.Fatal("it is over")
		}
	}
	if len(got) != 3 || !bytes.Equal(got[0], large) || string(got[1]) != "xyz" || len(got[2]) != 0 {
		t.Fatalf("%d messages", len(got))
	}
	// For each message the two bytes of its length, and the whole of it.
	if deliveries > 12 {
		t.Errorf("dealt with %d times", deliveries)
	}
	if len(in.rest) != 2 || in.began.IsZero() {
		t.Errorf("the beginning of the last one is %x", in.rest)
	}
	// The end comes behind a whole message, and not instead of it.
	if _, err := unix.Write(pair[1], []byte{'!'}); err != nil {
		t.Fatal(err)
	}
	end()
	if !take() || len(got) != 4 || string(got[3]) != "!" {
		t.Errorf("%d messages", len(got))
	}
}

// BenchmarkSmallSegments: what a message of 64,000 bytes takes that comes byte by
// byte, beside the system calls.
func BenchmarkSmallSegments(b *testing.B) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	in := &input{memory: &pool[scratch]{kept: 1}}
	m := append(binary.BigEndian.AppendUint16(nil, 64000), make([]byte, 64000)...)
	for b.Loop() {
		for i := range m {
			if _, err := unix.Write(pair[1], m[i:i+1]); err != nil {
				b.Fatal(err)
			}
			if in.receive(uintptr(pair[0])) {
				have := in.scratch.in[:in.n]
				_, size := frame(have)
				in.keep(in.scratch, have[size:], size > 0)
			}
		}
	}
}

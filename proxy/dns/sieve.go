package dns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// sieve keeps pods that flood a lane out of its queue: a filter of the socket, by
// which the kernel drops most of what they send before it takes room that others
// need. It counts that with what finds no room.
type sieve struct {
	batches int       // crowded ones
	since   time.Time // the first of them
	until   time.Time // when the filter goes; zero: there is none
	last    time.Time // until when there was one
	length  time.Duration
}

// A lane gets a sieve when it is crowded lastingly, for sieveBatches in a second:
// that is more than a queue holds (4 MB at most, 768 bytes each at least), so it is
// not about one moment in which the machine was busy. The sieve is for those whose is
// a part of sievePods of what was read, of sieveSample at least, and lets pass one
// datagram in sieveShare; for sieveTime, and twice as long each time that the flood
// turns out to be there still, but sieveLongest: who is taken for a flood by mistake
// must not suffer long.
const (
	sieveBatches = 128
	sieveSample  = 2 * batchSize
	sievePods    = 4
	sieveShare   = 16 // a power of two
	sieveTime    = 250 * time.Millisecond
	sieveLongest = 2 * time.Second
	// sieveEvery is how often it is looked whether one is to go: until then a pod
	// suffers that floods no more.
	sieveEvery = 50 * time.Millisecond
)

// sift gives a lane a sieve if it needs one: some batches were crowded.
func (r *relay) sift(l *lane, batches int) {
	v := &l.sieve
	if r.now.Sub(v.since) >= crowdTime {
		v.batches, v.since = 0, r.now
	}
	v.batches += batches
	again := r.now.Sub(v.last) < crowdTime
	floods := l.floods()
	if !again && v.batches < sieveBatches || len(floods) == 0 {
		return
	}
	v.batches = 0
	if v.length = min(2*v.length, sieveLongest); !again {
		v.length = sieveTime
	}
	if err := setSieve(l.fd, floods); err != nil {
		r.Log.Debug("no sieve", "error", err)
		return
	}
	if v.length == sieveTime {
		r.Log.Info("questions come faster than they are served, and others suffer: most are dropped", "clients", floods)
	}
	v.until = r.now.Add(v.length)
	r.sieves++
}

// floods are those that have sent much of what these batches had; none where they
// had too little to tell.
func (l *lane) floods() (of []netip.Addr) {
	all := 0
	for i := range l.sources {
		all += l.sources[i].n
	}
	for i := range l.sources {
		if s := &l.sources[i]; all >= sieveSample && s.n*sievePods >= all {
			of = append(of, s.of.ip())
		}
	}
	return of
}

// unsift takes sieves off whose time is over.
func (r *relay) unsift() {
	for _, l := range r.listeners {
		v := &l.sieve
		if v.until.IsZero() || r.now.Before(v.until) {
			continue
		}
		if err := unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
			r.Log.Error("take a sieve off", "error", err)
		}
		v.last, v.until = r.now, time.Time{}
		r.sieves--
	}
}

// setSieve has a socket's filter let pass one in sieveShare of the datagrams that
// come from some addresses, all of its family, and all others.
func setSieve(fd int, floods []netip.Addr) error {
	const (
		// What classic filters address beside the datagram (linux/filter.h).
		network = -0x100000    // the IP header
		random  = -0x1000 + 56 // a random number
		load    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	)
	ret := func(n uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: n} }
	at := func(offset int) unix.SockFilter { return unix.SockFilter{Code: load, K: uint32(int32(offset))} }
	some := []unix.SockFilter{
		at(random),
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: sieveShare - 1},
		{Code: equal, Jf: 1},
		ret(1<<32 - 1),
		ret(0),
	}
	var prog []unix.SockFilter
	for _, a := range floods {
		source := 12
		if a.Is6() {
			source = 8
		}
		words := a.AsSlice()
		for i := 0; i < len(words); i += 4 {
			// Where it differs, what is left of this address is leapt over.
			left := len(words)/4 - i/4 - 1
			prog = append(prog, at(network+source+i),
				unix.SockFilter{Code: equal, K: binary.BigEndian.Uint32(words[i:]), Jf: uint8(2*left + len(some))})
		}
		prog = append(prog, some...)
	}
	prog = append(prog, ret(1<<32-1))
	f := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &f); err != nil {
		return fmt.Errorf("attach a filter: %w", err)
	}
	return nil
}

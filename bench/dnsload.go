package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Loads of DNS beside dnsperf, which tells no percentiles and connects to
// nothing.
const (
	dnsLatency = "latency" // one question at a time, for a name that is known
	dnsLearn   = "learn"   // so many new names a second
	dnsPairs   = "pairs"   // so many new names, each connected to at once
	dnsMany    = "many"    // so many new names with three addresses each
)

// dnsSummary is what a load prints.
type dnsSummary struct {
	Questions int     `json:"questions"`
	Seconds   float64 `json:"seconds"`
	P50Us     float64 `json:"p50Us,omitempty"`
	P99Us     float64 `json:"p99Us,omitempty"`
	Lost      int     `json:"lost"`            // questions without an answer in time
	Refused   int     `json:"refused"`         // connections that failed
	Error     string  `json:"error,omitempty"` // of the first of them
}

// dnsLoadCommand is "dns-load MODE SERVER FIRST COUNT DURATION": names from
// number FIRST on, COUNT of them (learn: a second).
func dnsLoadCommand(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("dns-load wants a mode, a server, a first number, a count and a duration")
	}
	server, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	first, err1 := strconv.Atoi(args[2])
	count, err2 := strconv.Atoi(args[3])
	d, err3 := time.ParseDuration(args[4])
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	var s dnsSummary
	begin := time.Now()
	switch args[0] {
	case dnsLatency:
		s, err = askOneByOne(server, d)
	case dnsLearn:
		s, err = askPaced(server, first, count, d)
	case dnsPairs:
		s, err = askAndConnect(server, first, count, d)
	case dnsMany:
		s, err = askMany(server, first, count)
	default:
		err = fmt.Errorf("dns-load: unknown mode %q", args[0])
	}
	if err != nil {
		return err
	}
	s.Seconds = time.Since(begin).Seconds()
	return json.NewEncoder(os.Stdout).Encode(s)
}

// questionFor appends a question for the A record of name.
func questionFor(b []byte, id uint16, labels ...string) []byte {
	b = binary.BigEndian.AppendUint16(b, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for _, l := range labels {
		b = append(append(b, byte(len(l))), l...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

// resolver asks one server over one socket, one question at a time.
type resolver struct {
	fd  int
	id  uint16
	buf []byte
}

func newResolver(server netip.AddrPort) (*resolver, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, fmt.Errorf("set up socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", server, err)
	}
	return &resolver{fd: fd, buf: make([]byte, 4096)}, nil
}

var errLost = errors.New("no answer")

// ask returns the answer, which holds until the next question.
func (r *resolver) ask(labels ...string) ([]byte, error) {
	r.id++
	q := questionFor(r.buf[:0], r.id, labels...)
	if _, err := unix.Write(r.fd, q); err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	for {
		n, err := unix.Read(r.fd, r.buf)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return nil, errLost
		case err != nil:
			return nil, fmt.Errorf("read an answer: %w", err)
		case n >= 12 && binary.BigEndian.Uint16(r.buf) == r.id:
			if code := r.buf[3] & 15; code != 0 {
				return nil, fmt.Errorf("answered with code %d", code)
			}
			return r.buf[:n], nil
		}
	}
}

// askOneByOne measures how long an answer takes.
func askOneByOne(server netip.AddrPort, d time.Duration) (dnsSummary, error) {
	steadyThread()
	r, err := newResolver(server)
	if err != nil {
		return dnsSummary{}, err
	}
	var took []time.Duration
	s := dnsSummary{}
	for begin := time.Now(); time.Since(begin) < d; {
		start := time.Now()
		switch _, err := r.ask("host1", "bench", "test"); {
		case errors.Is(err, errLost):
			s.Lost++
		case err != nil:
			return s, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[int(q*float64(len(took)-1))].Nanoseconds()) / 1e3
	}
	s.Questions, s.P50Us, s.P99Us = len(took), at(0.5), at(0.99)
	return s, nil
}

// askPaced asks for perSecond new names a second.
func askPaced(server netip.AddrPort, first, perSecond int, d time.Duration) (dnsSummary, error) {
	r, err := newResolver(server)
	if err != nil {
		return dnsSummary{}, err
	}
	s := dnsSummary{}
	for begin := time.Now(); time.Since(begin) < d; {
		if due := begin.Add(time.Duration(s.Questions) * time.Second / time.Duration(perSecond)); time.Until(due) > 0 {
			time.Sleep(time.Until(due))
		}
		switch _, err := r.ask(strconv.Itoa(first+s.Questions), "pairs", "test"); {
		case errors.Is(err, errLost):
			s.Lost++
		case err != nil:
			return s, err
		}
		s.Questions++
	}
	return s, nil
}

// askMany asks for count new names of three addresses each.
func askMany(server netip.AddrPort, first, count int) (dnsSummary, error) {
	r, err := newResolver(server)
	if err != nil {
		return dnsSummary{}, err
	}
	s := dnsSummary{}
	for ; s.Questions < count; s.Questions++ {
		switch _, err := r.ask("m"+strconv.Itoa(first+s.Questions), "pairs", "test"); {
		case errors.Is(err, errLost):
			s.Lost++
		case err != nil:
			return s, err
		}
	}
	return s, nil
}

// pairWorkers is how many pods' worth of clients ask at a time.
const pairWorkers = 4

// askAndConnect asks for count new names, or as many as it can within d (0: all),
// and connects to the address of each as soon as the answer is there.
func askAndConnect(server netip.AddrPort, first, count int, d time.Duration) (dnsSummary, error) {
	var next, asked, lost, refused atomic.Int64
	begin := time.Now()
	var mu sync.Mutex
	var example, failed error
	var all sync.WaitGroup
	for range pairWorkers {
		r, err := newResolver(server)
		if err != nil {
			return dnsSummary{}, err
		}
		all.Go(func() {
			for n := int(next.Add(1)) - 1; n < count && (d == 0 || time.Since(begin) < d); n = int(next.Add(1)) - 1 {
				asked.Add(1)
				answer, err := r.ask(strconv.Itoa(first+n), "pairs", "test")
				if errors.Is(err, errLost) {
					lost.Add(1)
					continue
				}
				if err == nil && len(answer) < 16 {
					err = errors.New("an answer without an address")
				}
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
				addr := netip.AddrFrom4([4]byte(answer[len(answer)-4:]))
				if err := touch(netip.AddrPortFrom(addr, worldPort)); err != nil {
					refused.Add(1)
					mu.Lock()
					example = err
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if failed != nil {
		return dnsSummary{}, failed
	}
	s := dnsSummary{Questions: int(asked.Load()), Lost: int(lost.Load()), Refused: int(refused.Load())}
	if example != nil {
		s.Error = example.Error()
	}
	return s, nil
}

// touch connects and resets, so that no port is kept.
func touch(to netip.AddrPort) error {
	c, err := net.DialTimeout("tcp4", to.String(), 900*time.Millisecond) // less than a SYN is repeated after
	if err != nil {
		return err
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	return c.Close()
}

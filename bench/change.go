package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// probeEvery is how often the verdict is probed: the resolution of the figure.
const probeEvery = 500 * time.Microsecond

// probe is a UDP flow from the client to a subject whose verdict is asked by
// sending a datagram and looking whether it came.
type probe struct {
	send, receive int
	seq           uint64
}

func newProbe(from, to pod) (*probe, error) {
	p := &probe{}
	err := insideNamespace(to.ns, func() (err error) {
		if p.receive, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0); err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		return unix.Bind(p.receive, &unix.SockaddrInet4{Port: probePort})
	})
	if err != nil {
		return nil, fmt.Errorf("receive in %s: %w", to.ns, err)
	}
	err = insideNamespace(from.ns, func() (err error) {
		if p.send, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		return unix.Connect(p.send, &unix.SockaddrInet4{Port: probePort, Addr: to.addr.As4()})
	})
	if err != nil {
		_ = unix.Close(p.receive)
		return nil, fmt.Errorf("send in %s: %w", from.ns, err)
	}
	return p, nil
}

func (p *probe) close() {
	_ = unix.Close(p.send)
	_ = unix.Close(p.receive)
}

// passes sends one datagram and tells whether it arrived within the patience.
func (p *probe) passes(patience time.Duration) (bool, error) {
	p.seq++
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], p.seq)
	// A refused datagram is dropped without a word, so errors are real.
	if _, err := unix.Write(p.send, b[:]); err != nil {
		return false, fmt.Errorf("send a probe: %w", err)
	}
	deadline := time.Now().Add(patience)
	for {
		n, err := unix.Read(p.receive, b[:])
		if err == nil && n == 8 && binary.BigEndian.Uint64(b[:]) == p.seq {
			return true, nil
		}
		if err != nil && err != unix.EAGAIN {
			return false, fmt.Errorf("receive a probe: %w", err)
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false, nil
		}
		fds := []unix.PollFd{{Fd: int32(p.receive), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, max(1, int(left.Milliseconds()))); err != nil && err != unix.EINTR {
			return false, fmt.Errorf("wait for a probe: %w", err)
		}
	}
}

// until probes until the verdict is as wanted and stays so for three more
// probes, and returns when the first of them was sent.
func (p *probe) until(ctx context.Context, want bool) (time.Time, error) {
	// Between two pods of one machine a datagram arrives while it is sent; a
	// lost one needs a moment to be called lost.
	const patience = 5 * time.Millisecond
	var first time.Time
	for streak := 0; streak < 4; {
		if err := ctx.Err(); err != nil {
			return first, fmt.Errorf("wait for the verdict: %w", err)
		}
		sent := time.Now()
		got, err := p.passes(patience)
		if err != nil {
			return first, err
		}
		switch {
		case got != want:
			streak = 0
		case streak == 0:
			first = sent
			fallthrough
		default:
			streak++
		}
		if rest := probeEvery - time.Since(sent); rest > 0 {
			time.Sleep(rest)
		}
	}
	return first, nil
}

// changeFigures changes one of the policies at a time, opening a port and
// closing it again, and times it from the rename of the file until a packet's
// verdict is the new one.
func changeFigures(ctx context.Context, s *stage) ([]figure, error) {
	if s.weir == nil {
		return nil, nil
	}
	n := s.weir.node
	var opened, closed []float64
	for i := range s.o.effort.changes {
		subject, number := i/2%subjects, i/2%policiesPerSubject
		p, err := newProbe(n.client(), n.pods[subject+2])
		if err != nil {
			return nil, err
		}
		// An even change opens the port that the odd one after it closes.
		open := i%2 == 0
		took, err := s.timeChange(ctx, p, subject, number, open)
		p.close()
		if err != nil {
			return nil, fmt.Errorf("change %d (pod %s): %w", i+1, n.pods[subject+2].name, err)
		}
		if open {
			opened = append(opened, took)
		} else {
			closed = append(closed, took)
		}
		time.Sleep(30 * time.Millisecond)
	}
	all := append(append([]float64{}, opened...), closed...)
	note := fmt.Sprintf("%d changes among %d policies over %d pods; opening p50 %.1f, closing p50 %.1f, longest %.1f",
		len(all), subjects*policiesPerSubject, subjects, median(opened), median(closed), percentile(all, 100))
	return []figure{
		{Name: "policy change until enforced, p50", Value: percentile(all, 50), Unit: "ms", Note: note},
		{Name: figureChange, Value: percentile(all, 99), Unit: "ms"},
	}, nil
}

func (s *stage) timeChange(ctx context.Context, p *probe, subject, number int, open bool) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The verdict before must be the other one, or nothing would be timed.
	if _, err := p.until(ctx, !open); err != nil {
		return 0, fmt.Errorf("before the change: %w", err)
	}
	type outcome struct {
		at  time.Time
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		at, err := p.until(ctx, open)
		done <- outcome{at, err}
	}()
	begin, err := writeSubjectPolicy(s.weir.objects, subject, number, open)
	if err != nil {
		cancel()
		<-done
		return 0, fmt.Errorf("write the policy: %w", err)
	}
	o := <-done
	return float64(o.at.Sub(begin).Microseconds()) / 1000, o.err
}

package http

import (
	"context"
	"errors"
	nethttp "net/http"
	"testing"
	"time"
)

// TestPing: an answer comes while all loops come round, and none while one of
// them is stuck.
func TestPing(t *testing.T) {
	r := newRig(t, backend(t, func(nethttp.ResponseWriter, *nethttp.Request) {}))
	ping := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return r.server.Ping(ctx)
	}
	if err := ping(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock() // whoever tells of a request waits
	c := r.dial()
	c.send("GET /no HTTP/1.1\r\nHost: h\r\n\r\n")
	stuck := false
	for end := time.Now().Add(5 * time.Second); !stuck && time.Now().Before(end); {
		stuck = errors.Is(ping(50*time.Millisecond), context.DeadlineExceeded)
	}
	r.mu.Unlock()
	if !stuck {
		t.Error("an answer, though a loop is stuck")
	}
	if err := ping(5 * time.Second); err != nil {
		t.Error(err)
	}
}

// TestPingAfterTheEnd: nobody waits for loops that are no more.
func TestPingAfterTheEnd(t *testing.T) {
	s, err := New(Options{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Ping(limited); err != nil {
		t.Error(err)
	}
}

package main

import (
	"encoding/binary"
	"testing"
)

// The server that makes names up answers what dnsload.go asks.
func TestAnswerFor(t *testing.T) {
	for name, want := range map[string]uint16{"7": 1, "m7": 3} {
		q := questionFor(nil, 99, name, "pairs", "test")
		a, err := answerFor(nil, q)
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint16(a[6:]); got != want || binary.BigEndian.Uint16(a) != 99 {
			t.Errorf("%s: %d answers with id %d, want %d", name, got, binary.BigEndian.Uint16(a), want)
		}
		n := uint32(7)
		if want == 3 {
			n = 7*3 + 2
		}
		if last := [4]byte(a[len(a)-4:]); last != worldAddr(n).As4() {
			t.Errorf("%s: %v is not %v", name, last, worldAddr(n))
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, 12), questionFor(nil, 1, "host"), questionFor(nil, 1, "8")[:15]} {
		if _, err := answerFor(nil, bad); err == nil {
			t.Errorf("%x was answered", bad)
		}
	}
}

// A run that lost questions, or was answered with errors, is none.
func TestParseDnsperf(t *testing.T) {
	const good = "  Queries sent:         50\n  Queries completed:    50 (100.00%)\n  Queries lost:         0 (0.00%)\n\n" +
		"  Response codes:       NOERROR 50 (100.00%)\n  Queries per second:   1234.5\n"
	if rate, err := parseDnsperf([]byte(good)); err != nil || rate != 1234.5 {
		t.Errorf("%g, %v", rate, err)
	}
	for _, bad := range []string{
		"", "  Queries per second:   1234.5\n",
		"  Queries sent: 50\n  Queries completed: 49 (98%)\n  Queries lost: 1 (2%)\n NOERROR 49 (100%)\n  Queries per second: 9\n",
		"  Queries sent: 50\n  Queries completed: 50 (100%)\n  Queries lost: 0 (0%)\n NOERROR 49 (98%), REFUSED 1 (2%)\n  Queries per second: 9\n",
	} {
		if rate, err := parseDnsperf([]byte(bad)); err == nil {
			t.Errorf("%q: %g", bad, rate)
		}
	}
}

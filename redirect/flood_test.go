package redirect

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/test/node"
)

// laneConns is what miniAgent has room for, lanePart the part of one pod.
const (
	laneConns = 4096
	lanePart  = laneConns / 4
)

// TestFloodOfSYNs: a pod that sends nothing but SYNs, from all its ports, takes
// none of the room for the others' connections.
func TestFloodOfSYNs(t *testing.T) {
	l := openLane(t)
	l.serveHTTP()
	// Nor does its kernel say that these are no connections of its.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if out, err := l.rival.Run(ctx, "table inet t { chain out { type filter hook output priority 0; tcp flags rst drop; }; }", "nft", "-f", "-"); err != nil {
		t.Fatal(err, out)
	}
	web := netip.AddrPortFrom(l.server.Addrs[0], webPort)
	open := l.dial(t, web, 0)
	stop := make(chan struct{})
	var flooding sync.WaitGroup
	flooding.Go(func() { floodSYNs(t, l.rival, web, stop) })
	end := sync.OnceFunc(func() { close(stop); flooding.Wait() })
	defer end()
	waitFor(t, "the rival's share to be used up", 10*time.Second, func() bool { return l.order("refused") > laneConns })

	asked := 0
	for began := time.Now(); time.Since(began) < 3*time.Second; asked++ {
		c, err := l.tryDial(web, 0)
		if err != nil {
			t.Fatalf("connection %d: %v", asked, err)
		}
		if got, err := l.ask(c, "/who"); err != nil || got != c.LocalAddr().String() {
			t.Fatalf("request %d: %q, %v", asked, got, err)
		}
		_ = c.Close()
		if _, err := l.ask(open, "/who"); err != nil {
			t.Fatalf("request %d on an open connection: %v", asked, err)
		}
		if n := l.order("conns"); n > lanePart+lanePart/4 {
			t.Fatalf("%d entries", n)
		}
	}
	if asked < 20 {
		t.Errorf("only %d connections", asked)
	}
	if _, err := dialFrom(l.rival, web, 0); err == nil {
		t.Error("the rival has room left: this tests nothing")
	}
	if testing.Short() {
		return // the rest takes as long as an entry gets to become a connection
	}
	end()
	waitFor(t, "room for the rival", 20*time.Second, func() bool {
		c, err := dialFrom(l.rival, web, 0)
		if err == nil {
			_, err = l.ask(c, "/who")
			_ = c.Close()
		}
		return err == nil
	})
	_ = open.Close()
	l.noConns()
}

// floodSYNs sends SYNs from every port of a pod, until stop is closed.
func floodSYNs(t *testing.T, from *node.Pod, to netip.AddrPort, stop <-chan struct{}) {
	fd := -1
	if err := from.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	}); err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = unix.Close(fd) }()
	dst := &unix.SockaddrInet4{Addr: to.Addr().As4()}
	src := from.Addrs[0].As4()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for port := uint16(1024); ; {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		for range 20 {
			if err := unix.Sendto(fd, synSegment(src, dst.Addr, port, to.Port()), 0, dst); err != nil {
				t.Error(err)
				return
			}
			if port++; port == 0 {
				port = 1024
			}
		}
	}
}

// synSegment is a TCP header with a right checksum.
func synSegment(src, dst [4]byte, sport, dport uint16) []byte {
	b := make([]byte, 12+20) // behind the pseudo header
	copy(b, src[:])
	copy(b[4:], dst[:])
	b[9], b[11] = unix.IPPROTO_TCP, 20
	tcp := b[12:]
	binary.BigEndian.PutUint16(tcp, sport)
	binary.BigEndian.PutUint16(tcp[2:], dport)
	tcp[12], tcp[13] = 5<<4, 2 // SYN
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	return tcp
}

// TestShareWithoutAgent: a pod's connections are many more than its part, one
// after the other, with nobody but the proxy to tell the kernel which are over.
func TestShareWithoutAgent(t *testing.T) {
	l := openLane(t)
	l.serveHTTP()
	l.order("leave")
	web := netip.AddrPortFrom(l.server.Addrs[0], webPort)
	began := time.Now()
	const connections = 3 * lanePart
	for i := range connections {
		c, err := l.tryDial(web, 0)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if _, err := l.ask(c, "/who"); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_ = c.SetLinger(0) // the port is free at once
		_ = c.Close()
	}
	t.Logf("%d connections in %v, %d SYNs refused", connections, time.Since(began), l.order("refused"))
	l.noConns()
}

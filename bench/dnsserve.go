package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// dnsServe answers on UDP until the process is killed: a name that begins
// with a number N has one address, worldAddr(N); one that begins with "m" and a
// number has three of them. Zones of a million names need no server that loads
// them. On TCP, at worldPort, it takes what connects to any of those
// addresses, where it runs in the namespace that has them.
func dnsServe(addr string, world bool) error {
	group, _ := errgroup.WithContext(context.Background())
	if world {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", worldPort))
		if err != nil {
			return fmt.Errorf("listen for the world: %w", err)
		}
		group.Go(func() error {
			for {
				c, err := l.Accept()
				if err != nil {
					return err
				}
				_ = c.Close()
			}
		})
		return group.Wait()
	}
	pc, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	group.Go(func() error {
		in := make([]byte, 1500)
		var out []byte
		for {
			n, from, err := pc.ReadFrom(in)
			if err != nil {
				return err
			}
			if out, err = answerFor(out[:0], in[:n]); err != nil {
				continue // nobody here asks so
			}
			if _, err := pc.WriteTo(out, from); err != nil {
				return err
			}
		}
	})
	return group.Wait()
}

// worldPort is what the addresses of the world listen on; worldNet is all of
// them.
const worldPort = 8080

var worldNet = netip.MustParsePrefix("100.64.0.0/10")

func worldAddr(n uint32) netip.Addr {
	base := worldNet.Addr().As4()
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])+1+n%(1<<22-2))
	return netip.AddrFrom4(a)
}

var errQuestion = errors.New("no question for this server")

// answerFor appends the answer to a question: addresses for A, nothing for
// other types.
func answerFor(out, q []byte) ([]byte, error) {
	if len(q) < 17 {
		return out, errQuestion
	}
	label := int(q[12])
	end := 12
	for end < len(q) && q[end] != 0 {
		end += int(q[end]) + 1
	}
	if end+5 > len(q) || label < 1 {
		return out, errQuestion
	}
	first := string(q[13 : 13+label])
	count, digits := 1, strings.TrimPrefix(first, "m")
	if digits != first {
		count = 3
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return out, errQuestion
	}
	if binary.BigEndian.Uint16(q[end+1:]) != 1 {
		count = 0
	}
	out = append(out, q[:end+5]...)
	binary.BigEndian.PutUint16(out[2:], 0x8180) // answer, recursion asked for and had
	binary.BigEndian.PutUint16(out[6:], uint16(count))
	binary.BigEndian.PutUint32(out[8:], 0) // no authority, no EDNS
	for i := range count {
		addr := worldAddr(uint32(n)*uint32(count) + uint32(i)).As4()
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4)
		out = append(out, addr[:]...)
	}
	return out, nil
}

package test

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
)

// raw sends one packet of an IP protocol and tells whether it arrived.
func raw(from, to *place, family int, protocol string, payload []byte) (arrived bool, err error) {
	network := fmt.Sprintf("ip%d:%s", 4+2*family, protocol)
	in, err := to.ListenPacket(network, to.addrs[family].String())
	if err != nil {
		return false, err
	}
	defer func() { _ = in.Close() }()
	out, err := from.ListenPacket(network, from.addrs[family].String())
	if err != nil {
		return false, err
	}
	defer func() { _ = out.Close() }()
	if _, err := out.WriteTo(payload, &net.IPAddr{IP: to.addrs[family].AsSlice()}); err != nil {
		return false, err
	}
	_ = in.SetDeadline(time.Now().Add(silence))
	buf := make([]byte, 2048)
	for {
		_, peer, err := in.ReadFrom(buf)
		if err != nil {
			return false, nil
		}
		if a, ok := netip.AddrFromSlice(peer.(*net.IPAddr).IP); ok && a.Unmap() == from.addrs[family] {
			return true, nil
		}
	}
}

// sctpInit is the first packet of an SCTP association.
func sctpInit(port uint16) []byte {
	b := make([]byte, 12+20)
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], port)
	b[12] = 1 // INIT
	binary.BigEndian.PutUint16(b[14:], 20)
	binary.BigEndian.PutUint32(b[16:], 1) // tag
	binary.BigEndian.PutUint32(b[20:], 1<<16)
	binary.BigEndian.PutUint16(b[24:], 1)
	binary.BigEndian.PutUint16(b[26:], 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// TestOtherProtocols: SCTP has ports as TCP has; a protocol that no rule can
// name passes only where everything may.
func TestOtherProtocols(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/protocols.txtar")
	client := s.places["shop/client"]
	for _, c := range []struct {
		to       string
		protocol string
		payload  []byte
		arrives  bool
		reason   flow.Reason
	}{
		{"shop/ports", "132", sctpInit(9999), true, flow.ReasonPolicyAllowed},
		{"shop/ports", "132", sctpInit(9998), false, flow.ReasonPolicyDenied},
		{"shop/ports", "253", []byte("experiment"), false, flow.ReasonUnknownL4},
		{"shop/peer", "132", sctpInit(9998), true, flow.ReasonPolicyAllowed},
		{"shop/peer", "253", []byte("experiment"), true, flow.ReasonPolicyAllowed},
		{"shop/open", "253", []byte("experiment"), true, flow.ReasonNotEnforced},
	} {
		for family := range 2 {
			to := s.places[c.to]
			s.mu.Lock()
			s.records = nil
			s.mu.Unlock()
			arrived, err := raw(client, to, family, c.protocol, c.payload)
			if err != nil || arrived != c.arrives {
				t.Errorf("protocol %s to %s, IPv%d: arrived %v, %v", c.protocol, c.to, 4+2*family, arrived, err)
			}
			if _, err := s.awaitRecord(func(r flow.Record) bool {
				return r.Reason == c.reason.String() && r.Source.Addr == client.addrs[family] && r.Dest.Addr == to.addrs[family] &&
					(r.Verdict == flow.Dropped) == !c.arrives
			}); err != nil {
				t.Errorf("protocol %s to %s, IPv%d: %s: %v", c.protocol, c.to, 4+2*family, c.reason, err)
			}
		}
	}
}

// TestForeignSource: a pod under policy that uses an address which is not its
// own gets nowhere with it, be it free or another pod's.
func TestForeignSource(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/protocols.txtar")
	thief, victim, target := s.places["shop/ports"], s.places["shop/client"], s.places["shop/peer"]
	for family := range 2 {
		free := netip.MustParseAddr([]string{"10.77.1.99", "fd77:0:1:1::99"}[family])
		for _, stolen := range []netip.Addr{free, victim.addrs[family]} {
			if err := thief.AddAddress("eth0", stolen); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), silence)
			defer cancel()
			d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: stolen.AsSlice()}}
			conn, err := thief.Dial(ctx, d, "tcp", node.To(target.addrs[family], 7000))
			if err == nil {
				conn.Close()
				t.Errorf("a connection from %s was made", stolen)
			}
			if _, err := s.awaitRecord(func(r flow.Record) bool {
				return r.Reason == flow.ReasonInvalidSource.String() && r.Source.Addr == stolen
			}); err != nil {
				t.Errorf("from %s: %v", stolen, err)
			}
		}
	}
}

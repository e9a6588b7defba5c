package node

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Ping sends an echo request with this many bytes and waits for its reply.
func (ns *Netns) Ping(ctx context.Context, to netip.Addr, size int) error {
	network, protocol := "ip4:icmp", 1
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		network, protocol = "ip6:ipv6-icmp", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := ns.ListenPacket(network, "")
	if err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	defer func() { _ = c.Close() }()
	echo := &icmp.Echo{ID: rand.IntN(1 << 16), Seq: 1, Data: bytes.Repeat([]byte("weir"), size/4+1)[:size]}
	m := icmp.Message{Type: request, Body: echo}
	// The kernel fills in the checksum of ICMPv6.
	packet, err := m.Marshal(nil)
	if err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(5 * time.Second)
	}
	_ = c.SetDeadline(deadline)
	if _, err := c.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	buf := make([]byte, 1<<16)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || m.Type != reply {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == echo.ID && bytes.Equal(e.Data, echo.Data) {
			return nil
		}
	}
}

package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// serve echoes on two ports of TCP and UDP, until the test ends.
func (n *node) serve(ns *namespace) {
	t := n.t
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	for _, port := range []int{echoPort, deniedPort} {
		var (
			ln  net.Listener
			pc  net.PacketConn
			err error
		)
		ns.do(func() {
			var e1, e2 error
			ln, e1 = net.Listen("tcp", fmt.Sprintf(":%d", port))
			pc, e2 = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
			err = errors.Join(e1, e2)
		})
		n.must(err)
		context.AfterFunc(ctx, func() { ln.Close(); letGo(pc) })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
			}
		}()
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(b[:n], from)
			}
		}()
	}
}

const patience = 250 * time.Millisecond

// dial opens a connection from a namespace.
func (n *node) dial(from *namespace, network string, to netip.Addr, port int) (c net.Conn, err error) {
	from.do(func() {
		d := net.Dialer{Timeout: patience}
		c, err = d.Dial(network, netip.AddrPortFrom(to, uint16(port)).String())
	})
	return c, err
}

// exchange sends bytes and wants them back.
func exchange(c net.Conn, b []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, b) {
		return errors.New("other bytes came back")
	}
	return nil
}

// reaches tells whether an echo works.
func (n *node) reaches(from *namespace, network string, to netip.Addr, port, size int) error {
	c, err := n.dial(from, network, to, port)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c, bytes.Repeat([]byte{'x'}, size))
}

func (n *node) can(from *namespace, network string, to netip.Addr, port, size int) {
	n.t.Helper()
	// A packet may get lost while neighbors are found.
	var err error
	for range 3 {
		if err = n.reaches(from, network, to, port, size); err == nil {
			return
		}
	}
	n.t.Errorf("%s to %v:%d, %d bytes: %v; %s", network, to, port, size, err, n.why())
}

func (n *node) cannot(from *namespace, network string, to netip.Addr, port, size int) {
	n.t.Helper()
	if n.reaches(from, network, to, port, size) == nil {
		n.t.Errorf("%s to %v:%d, %d bytes: reached", network, to, port, size)
	}
}

// why lists the drops so far.
func (n *node) why() string {
	counters, err := n.Counters()
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, c := range counters {
		if c.Reason.Drops() {
			out = append(out, fmt.Sprintf("%v %v %d", c.Direction, c.Reason, c.Packets))
		}
	}
	return strings.Join(out, ", ")
}

// ping sends an echo request of that size and wants its answer.
func (n *node) ping(from *namespace, ip addresses, to netip.Addr, size int) error {
	var err error
	from.do(func() { err = ping(ip, to, size) })
	return err
}

func ping(ip addresses, to netip.Addr, size int) error {
	domain, reply := unix.AF_INET, byte(0)
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])}
	if !ip.v4 {
		domain, reply = unix.AF_INET6, 129
		sa = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW, int(ip.icmp))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	b := packet{proto: ip.icmp, icmp: ip.echo, sport: 4711, payload: pad(size)}.transport()
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	b[2], b[3] = byte(^sum>>8), byte(^sum)
	if err := unix.Sendto(fd, b, 0, sa); err != nil {
		return err
	}
	in := make([]byte, 65536)
	for {
		got, _, err := unix.Recvfrom(fd, in, 0)
		if err != nil {
			return err
		}
		icmp := in[:got]
		if ip.v4 {
			icmp = icmp[20:]
		}
		if icmp[0] == reply && bytes.Equal(icmp[4:6], b[4:6]) && len(icmp) == len(b) {
			return nil
		}
	}
}

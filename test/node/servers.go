package node

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Servers and clients that tell what a connection looked like from the other
// end.

// keep closes c when the namespace is closed.
func (ns *Netns) keep(c io.Closer) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.closers = append(ns.closers, c)
}

// ServeTCP answers each connection with a line that holds the address the
// client has here, and then every byte that comes.
func (ns *Netns) ServeTCP(port uint16) error {
	l, err := ns.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	ns.keep(l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", c.RemoteAddr())
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return nil
}

// ServeUDP answers each datagram with the client's address here, a newline
// and the datagram, from the address that was asked.
func (ns *Netns) ServeUDP(port uint16) error {
	c4, err := ns.ListenPacket("udp4", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	ns.keep(c4)
	c6, err := ns.ListenPacket("udp6", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	ns.keep(c6)
	p4, p6 := ipv4.NewPacketConn(c4), ipv6.NewPacketConn(c6)
	if err := errors.Join(p4.SetControlMessage(ipv4.FlagDst, true), p6.SetControlMessage(ipv6.FlagDst, true)); err != nil {
		return fmt.Errorf("serve udp in %s: %w", ns.Name, err)
	}
	go answerUDP(func(buf []byte) (int, func([]byte), net.Addr, error) {
		n, cm, from, err := p4.ReadFrom(buf)
		return n, func(b []byte) { _, _ = p4.WriteTo(b, &ipv4.ControlMessage{Src: cm.Dst}, from) }, from, err
	})
	go answerUDP(func(buf []byte) (int, func([]byte), net.Addr, error) {
		n, cm, from, err := p6.ReadFrom(buf)
		return n, func(b []byte) { _, _ = p6.WriteTo(b, &ipv6.ControlMessage{Src: cm.Dst}, from) }, from, err
	})
	return nil
}

func answerUDP(read func([]byte) (n int, reply func([]byte), from net.Addr, err error)) {
	buf := make([]byte, 1<<16)
	for {
		n, reply, from, err := read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			reply(fmt.Appendf(nil, "%s\n%s", from, buf[:n]))
		}
	}
}

// HTTPSeen is what ServeHTTP tells about a request.
type HTTPSeen struct {
	Peer   string // client's address as the server sees it
	Method string
	Host   string
	URI    string
	Header http.Header
	Length int64
	SHA256 string // of the body
	Conn   int64  // the server's number of the connection
	Count  int64  // requests on this connection so far
}

// ServeHTTP answers every request with an HTTPSeen; handle, where it is not
// nil, comes first and tells whether it answered.
func (ns *Netns) ServeHTTP(port uint16, handle func(http.ResponseWriter, *http.Request) bool) error {
	l, err := ns.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	type counters struct{ conn, requests int64 }
	type key struct{}
	var conns int64
	s := &http.Server{
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			conns++ // ConnContext runs in the one goroutine that accepts
			return context.WithValue(ctx, key{}, &counters{conn: conns})
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := r.Context().Value(key{}).(*counters)
			c.requests++
			if handle != nil && handle(w, r) {
				return
			}
			sum := sha256.New()
			n, err := io.Copy(sum, r.Body)
			if err != nil {
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(HTTPSeen{
				Peer: r.RemoteAddr, Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header,
				Length: n, SHA256: hex.EncodeToString(sum.Sum(nil)), Conn: c.conn, Count: c.requests,
			})
		}),
	}
	ns.keep(s)
	go func() { _ = s.Serve(l) }()
	return nil
}

// HTTPClient is a client inside the namespace. It follows no redirects and
// asks no proxy.
func (ns *Netns) HTTPClient(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout:       timeout,
		Transport:     &http.Transport{DialContext: ns.DialContext, MaxIdleConnsPerHost: 16},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// AskTCP connects to a ServeTCP, sends text through it and back, and returns
// the address the server saw.
func (ns *Netns) AskTCP(ctx context.Context, to netip.AddrPort, text string) (seen netip.AddrPort, err error) {
	c, err := ns.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return seen, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return seen, err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return seen, err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(r, back); err != nil {
		return seen, err
	}
	if string(back) != text {
		return seen, fmt.Errorf("%s sent %d bytes back that are not what it got", to, len(back))
	}
	return parsePeer(strings.TrimSpace(line))
}

// AskUDP sends a datagram to a ServeUDP and returns the address the server saw.
func (ns *Netns) AskUDP(ctx context.Context, to netip.AddrPort, text string) (seen netip.AddrPort, err error) {
	c, err := ns.DialContext(ctx, "udp", to.String())
	if err != nil {
		return seen, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	if _, err := io.WriteString(c, text); err != nil {
		return seen, err
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil {
		return seen, err
	}
	line, back, _ := strings.Cut(string(buf[:n]), "\n")
	if back != text {
		return seen, fmt.Errorf("%s sent %d bytes back that are not what it got", to, len(back))
	}
	return parsePeer(line)
}

// parsePeer reads an address and port; a mapped IPv4 address becomes IPv4.
func parsePeer(s string) (netip.AddrPort, error) {
	p, err := netip.ParseAddrPort(s)
	if err != nil {
		return p, err
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), nil
}

// To is an address and port for a dialer.
func To(a netip.Addr, port uint16) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}

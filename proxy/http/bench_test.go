package http

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/weirnet/weir/policy/httprules"
)

// BenchmarkRelay is one connection and one request after the other, through
// the proxy and without it; client and server are part of the cost.
func BenchmarkRelay(b *testing.B) {
	for _, size := range []int{2, 64 << 10, 1 << 20} {
		answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, make([]byte, size))
		upstream := script(b, func(c *net.TCPConn, in *bufio.Reader) {
			buf := make([]byte, 4096)
			for {
				if _, err := in.Read(buf); err != nil {
					return
				}
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		})
		for _, n := range []int{0, 1, 100, 1000} {
			name, addr := fmt.Sprintf("body=%d/rules=%d", size, n), upstream
			if n == 0 {
				name = fmt.Sprintf("body=%d/direct", size)
			} else {
				var set []httprules.Rule
				for i := range n {
					set = append(set, httprules.Rule{Method: "GET", Path: fmt.Sprintf("/api/v1/resource%d/[0-9]+", i)})
				}
				r := newRig(b, upstream, rules(b, set...))
				addr = r.addr
			}
			b.Run(name, func(b *testing.B) {
				request := fmt.Appendf(nil, "GET /api/v1/resource%d/1 HTTP/1.1\r\nHost: h\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", max(n-1, 0))
				c, err := net.Dial("tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				buf := make([]byte, len(answer))
				for b.Loop() {
					if _, err := c.Write(request); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(c, buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

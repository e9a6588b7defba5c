package redirect

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
)

// The ports that need the proxy.
const (
	webPort     = 8080
	deadPort    = 8081 // nobody listens
	dnsPort     = 53
	deadDNSPort = 54 // nobody listens
)

// allowedZone is what may be asked for there.
const allowedZone = "example.test"

// lane is a node with a client and a server, and a proxy between them. The rival
// is another client.
type lane struct {
	t                *testing.T
	network          *node.Network
	node             *node.Node
	client, server   *node.Pod
	rival            *node.Pod
	in               io.WriteCloser
	mu               sync.Mutex
	records          []flow.Record
	answers          chan string
	requests, closed chan string // paths asked for, and how connections ended at the server
}

func openLane(t *testing.T) *lane {
	t.Helper()
	return openLaneOf(t, node.Routed)
}

func openLaneOf(t *testing.T, wiring node.Wiring) *lane {
	t.Helper()
	needRoot(t)
	w, err := node.NewNetwork(node.NetworkOptions{Name: node.UniqueName("weirredir", 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	n, err := w.AddNode(node.NodeOptions{Name: "a", RPFilter: 1})
	if err != nil {
		t.Fatal(err)
	}
	l := &lane{t: t, network: w, node: n, answers: make(chan string, 1), requests: make(chan string, 16), closed: make(chan string, 16)}
	var pods []podConfig
	for _, name := range []string{"client", "server", "rival"} {
		p, err := n.AddPod(node.PodObject("ns", name), wiring)
		if err != nil {
			t.Fatal(err)
		}
		inside, err := p.Link("eth0")
		if err != nil {
			t.Fatal(err)
		}
		outside, err := n.Host.Link(p.HostLink)
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, podConfig{
			Addrs: p.Addrs, Ifindex: outside.Attrs().Index, Egress: name != "server",
			PodMAC: inside.Attrs().HardwareAddr, HostMAC: outside.Attrs().HardwareAddr,
		})
		switch name {
		case "client":
			l.client = p
		case "server":
			l.server = p
		default:
			l.rival = p
		}
	}
	config, err := json.Marshal(pods)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "lane")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	showLog(t, dir)
	cmd := exec.Command("/proc/self/exe", "proxy", "agent", dir, string(config))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if l.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := n.Host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	read := make(chan struct{})
	go l.read(out, ready, read)
	t.Cleanup(func() {
		l.in.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	select {
	case <-ready:
	case <-read:
		t.Fatal("the agent ended")
	case <-time.After(20 * time.Second):
		t.Fatal("the agent is not ready")
	}
	return l
}

func (l *lane) read(out io.Reader, ready, done chan struct{}) {
	defer close(done)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		switch line := lines.Text(); {
		case line == "ready":
			close(ready)
		case strings.HasPrefix(line, "answer "):
			l.answers <- strings.TrimPrefix(line, "answer ")
		default:
			var r flow.Record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				l.t.Errorf("%q: %v", line, err)
				continue
			}
			l.mu.Lock()
			l.records = append(l.records, r)
			l.mu.Unlock()
		}
	}
}

// recorded are the records of requests for path.
func (l *lane) recorded(path string) (out []flow.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.HTTP != nil && r.HTTP.Path == path {
			out = append(out, r)
		}
	}
	return out
}

// order tells the agent something, and returns the number it answers with.
func (l *lane) order(what string) (n int) {
	l.t.Helper()
	fmt.Fprintln(l.in, what)
	var rest string
	answer := <-l.answers
	if _, err := fmt.Sscan(answer, &n, &rest); err != nil || rest != "<nil>" {
		l.t.Fatalf("%s: %s, %v", what, answer, err)
	}
	return n
}

// noConns waits until no redirected flow is left in the kernel.
func (l *lane) noConns() {
	l.t.Helper()
	last := 0
	for range 100 {
		if last = l.order("conns"); last == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	l.t.Errorf("%d entries left in conns", last)
}

func (l *lane) tryDial(to netip.AddrPort, from int) (*net.TCPConn, error) {
	return dialFrom(l.client, to, from)
}

func dialFrom(p *node.Pod, to netip.AddrPort, from int) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := p.Dial(ctx, &net.Dialer{LocalAddr: &net.TCPAddr{Port: from}}, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(15 * time.Second))
}

func (l *lane) dial(t *testing.T, to netip.AddrPort, from int) *net.TCPConn {
	t.Helper()
	c, err := l.tryDial(to, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// serveHTTP answers GET with the address the client has; on /hang it says
// "hanging", and when the client goes it tells how; on /abort it resets.
func (l *lane) serveHTTP() {
	for _, a := range l.server.Addrs {
		listener, err := l.server.Listen("tcp", netip.AddrPortFrom(a, webPort).String())
		if err != nil {
			l.t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/hang", "/abort":
				c, buf, err := http.NewResponseController(w).Hijack()
				if err != nil {
					l.t.Error(err)
					return
				}
				defer c.Close()
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhanging")
				if r.URL.Path == "/abort" {
					time.Sleep(50 * time.Millisecond) // what was said is not to be overtaken
					_ = c.(*net.TCPConn).SetLinger(0)
					return
				}
				_, err = io.Copy(io.Discard, buf)
				l.closed <- fmt.Sprint(err)
			case "/upload":
				n, err := io.Copy(io.Discard, r.Body)
				fmt.Fprintf(w, "%d %v", n, err)
			default:
				_, _ = io.WriteString(w, r.RemoteAddr)
			}
		})}
		go func() { _ = s.Serve(listener) }()
		l.t.Cleanup(func() { _ = s.Close() })
	}
}

func (l *lane) ask(c *net.TCPConn, path string) (string, error) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: web\r\n\r\n", path); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

package dns

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// noted is what was logged.
type noted struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (n *noted) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all.Write(b)
}

func (n *noted) lines() (out []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for line := range strings.Lines(n.all.String()) {
		if strings.Contains(line, messageMalformed) {
			out = append(out, line)
		}
	}
	return out
}

func (n *noted) logger() func(*rig) {
	return func(g *rig) { g.relay.Log = slog.New(slog.NewTextHandler(n, nil)) }
}

// TestMalformedIsTold: who sends what can't be read is told of in the log, once a
// session, and once a second.
func TestMalformedIsTold(t *testing.T) {
	n := &noted{}
	g := newRig(t, n.logger())
	server := netip.AddrPortFrom(server4, 53)
	g.listen(server)
	c := g.dial(pod4, server)
	for range 3 {
		g.send(c, []byte("x"))
	}
	g.send(g.dial(pod4, netip.AddrPortFrom(server4, 54)), []byte("x"))
	g.send(g.dial(otherPod4, server), []byte("x"))
	g.records(5)
	lines := n.lines()
	if len(lines) != 2 || !strings.Contains(lines[0], "client=10.1.0.7 server=10.2.0.53:53 protocol=UDP") || !strings.Contains(lines[1], "client=10.1.0.8") {
		t.Errorf("%q", lines)
	}
	// The other session is told of later, the first one never again.
	g.loop(func(r *relay) {
		for _, p := range r.pods {
			p.told = p.told.Add(-tellEvery)
		}
	})
	g.send(c, []byte("x"))
	g.send(g.dial(pod4, netip.AddrPortFrom(server4, 54)), []byte("x"))
	g.records(2)
	if lines := n.lines(); len(lines) != 3 || !strings.Contains(lines[2], "server=10.2.0.53:54") {
		t.Errorf("%q", lines)
	}
}

// TestMalformedStreamsAreTold: as for datagrams.
func TestMalformedStreamsAreTold(t *testing.T) {
	n := &noted{}
	g := newStreams(t, n.logger())
	one, two := g.connect(), g.connect()
	for _, s := range []*streamRig{one, one, two} {
		s.write(s.client, []byte{0, 1, 'x'})
		g.records(1)
	}
	if lines := n.lines(); len(lines) != 1 || !strings.Contains(lines[0], "protocol=TCP") || !strings.Contains(lines[0], "server=127.0.0.1:") {
		t.Errorf("%q", lines)
	}
	two.pair.stream.pod.told.Store(time.Now().Add(-tellEvery).UnixNano())
	for _, s := range []*streamRig{one, two} {
		s.write(s.client, []byte{0, 1, 'x'})
		g.records(1)
	}
	if lines := n.lines(); len(lines) != 2 {
		t.Errorf("%q", lines)
	}
}

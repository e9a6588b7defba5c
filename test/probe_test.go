package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
)

const (
	// patience is how long what must come may take.
	patience = 5 * time.Second
	// silence is how long a probe waits that must not be answered. A record of
	// the drop is asked for as well, so a slow machine can't pass for a drop.
	silence = 400 * time.Millisecond
)

// probe is one line of a story that opens flows.
type probe struct {
	from     string
	verb     string // tcp, udp, ping, resolve or an HTTP method
	to       string // place
	port     uint16
	path     string
	families []int // 0: IPv4, 1: IPv6
	size     int
	host     string
	header   http.Header
	kind     uint16 // of a question; 0: addresses of the probe's family
	over     string // udp or tcp
	believed bool   // the answer teaches
	scope    string // the namespace alone that it teaches
	want     string
	checks   map[string]string
}

func (s *story) parseProbe(w []string) (*probe, error) {
	p := &probe{families: []int{0, 1}, header: http.Header{}, checks: map[string]string{}, size: 1, over: "udp", believed: true}
	if len(w) < 5 {
		return nil, errors.New("a probe is: FROM VERB TO => WHAT COMES OF IT")
	}
	p.from, p.verb = w[0], w[1]
	target, path, hasPath := strings.Cut(w[2], ":")
	p.to = target
	if hasPath {
		port, rest, _ := strings.Cut(path, "/")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("port of %s: %w", w[2], err)
		}
		p.port, p.path = uint16(n), "/"+rest
	}
	i := 3
	for ; i < len(w) && w[i] != "=>"; i++ {
		k, v, _ := strings.Cut(w[i], "=")
		switch k {
		case "family":
			p.families = []int{map[string]int{"4": 0, "6": 1}[v]}
		case "size":
			n, err := strconv.Atoi(v)
			if err != nil {
				return nil, fmt.Errorf("size: %w", err)
			}
			p.size = n
		case "host":
			p.host = v
		case "header":
			name, value, ok := strings.Cut(v, ": ")
			if !ok {
				return nil, fmt.Errorf("header %q is not \"Name: value\"", v)
			}
			p.header.Add(name, value)
		case "type":
			if p.kind = dns.StringToType[v]; p.kind == 0 {
				return nil, fmt.Errorf("there is no type %s", v)
			}
		case "over":
			p.over = v
		case "believed":
			if p.believed = v != "no"; v != "yes" && p.believed {
				p.scope = v
			}
		default:
			return nil, fmt.Errorf("a probe has no %s", k)
		}
	}
	if i+1 >= len(w) {
		return nil, errors.New("what comes of it is missing")
	}
	p.want = w[i+1]
	for _, c := range w[i+2:] {
		k, v, ok := strings.Cut(c, "=")
		if !ok {
			return nil, fmt.Errorf("%s: not name=value", c)
		}
		p.checks[k] = v
	}
	return p, nil
}

// isHTTP tells whether the verb is a method.
func (p *probe) isHTTP() bool { return p.verb == strings.ToUpper(p.verb) }

// probe runs p for its families at once.
func (s *story) probe(p *probe) error {
	from, ok := s.places[p.from]
	if !ok {
		return fmt.Errorf("there is no place %s", p.from)
	}
	to, ok := s.places[p.to]
	if !ok {
		return fmt.Errorf("there is no place %s", p.to)
	}
	errs := make([]error, len(p.families))
	var wg sync.WaitGroup
	for i, family := range p.families {
		wg.Go(func() {
			if err := s.probeFamily(p, from, to, family); err != nil {
				errs[i] = fmt.Errorf("IPv%d: %w", 4+2*family, err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.explain(p)
}

func (s *story) probeFamily(p *probe, from, to *place, family int) error {
	target := netip.AddrPortFrom(to.addrs[family], p.port)
	timeout := patience
	if p.want == "dropped" {
		timeout = silence
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	began := time.Now()
	var got string
	var seen netip.AddrPort
	var err error
	text := strings.Repeat("x", p.size)
	switch {
	case p.verb == "tcp":
		seen, err = from.AskTCP(ctx, target, text)
		got = outcome(err)
	case p.verb == "udp":
		seen, err = from.AskUDP(ctx, target, text)
		got = outcome(err)
	case p.verb == "ping":
		err = from.Ping(ctx, target.Addr(), p.size)
		got = outcome(err)
	case p.verb == "resolve":
		got, err = s.resolve(ctx, p, from, target, family)
	case p.isHTTP():
		var status int
		status, seen, err = p.request(ctx, from.Netns, target)
		if got = strconv.Itoa(status); err != nil {
			got = outcome(err)
		}
	default:
		return fmt.Errorf("there is no verb %s", p.verb)
	}
	if got != p.want {
		return errors.Join(fmt.Errorf("%s, not %s", got, p.want), err)
	}
	if place := p.checks["seen"]; place != "" {
		if want := s.places[place].addrs[family]; seen.Addr() != want {
			return fmt.Errorf("the server saw %s, not %s (%s)", seen.Addr(), place, want)
		}
	}
	return s.checkRecords(p, from, target, family, began)
}

// outcome names what became of a flow.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "dropped"
	}
	return err.Error()
}

// request sends one request on a connection of its own.
func (p *probe) request(ctx context.Context, from *node.Netns, target netip.AddrPort) (status int, seen netip.AddrPort, err error) {
	var body io.Reader
	if p.verb != "GET" && p.verb != "HEAD" {
		body = strings.NewReader(strings.Repeat("x", p.size))
	}
	r, err := http.NewRequestWithContext(ctx, p.verb, "http://"+target.String()+p.path, body)
	if err != nil {
		return 0, seen, err
	}
	r.Header, r.Host = p.header, p.host
	c := from.HTTPClient(0)
	defer c.CloseIdleConnections()
	resp, err := c.Do(r)
	if err != nil {
		return 0, seen, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK && p.verb != "HEAD" {
		var h node.HTTPSeen
		if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
			return 0, seen, err
		}
		if body != nil && h.Length != int64(p.size) {
			return 0, seen, fmt.Errorf("the server read %d of %d bytes", h.Length, p.size)
		}
		seen = netip.MustParseAddrPort(h.Peer)
		seen = netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())
	}
	return resp.StatusCode, seen, nil
}

// checkRecords asks for the records that must tell of a probe.
func (s *story) checkRecords(p *probe, from *place, target netip.AddrPort, family int, began time.Time) error {
	checks := map[string]string{}
	for _, k := range []string{"verdict", "reason", "policy", "rule", "direction", "layer"} {
		if v, ok := p.checks[k]; ok {
			checks[k] = v
		}
	}
	for k := range p.checks {
		if _, ok := checks[k]; !ok && k != "seen" && k != "records" && k != "addresses" {
			return fmt.Errorf("there is nothing to check by the name %s", k)
		}
	}
	if p.want == "dropped" && checks["verdict"] == "" {
		checks["verdict"] = flow.Dropped.String()
	}
	if len(checks) == 0 && p.checks["records"] == "" {
		return nil
	}
	if (p.isHTTP() || p.verb == "resolve") && p.want != "dropped" && checks["layer"] == "" {
		checks["layer"] = "L7"
	}
	if to, ok := s.forwards[target]; ok {
		target = to
	}
	var mine []flow.Record
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		mine = s.recordsOf(p, from, target, family, began)
		matching := 0
		for _, r := range mine {
			if recordHolds(r, checks) {
				matching++
			}
		}
		if n, err := strconv.Atoi(p.checks["records"]); err == nil {
			if matching == n {
				return nil
			}
		} else if matching > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			break
		}
	}
	var b strings.Builder
	for _, r := range mine {
		text, _ := json.Marshal(r)
		fmt.Fprintf(&b, "\n\t\t%s", text)
	}
	if b.Len() == 0 {
		b.WriteString(" none")
	}
	return fmt.Errorf("no record, or not so many, with %v; records of the flow:%s", checks, &b)
}

// recordsOf are the records of one probe.
func (s *story) recordsOf(p *probe, from *place, target netip.AddrPort, family int, began time.Time) []flow.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var mine []flow.Record
	for _, r := range s.records {
		switch {
		case r.Dest.Addr != target.Addr(), r.Dest.Port != target.Port() && p.verb != "ping":
		case from.pod != nil && r.Source.Addr != from.addrs[family]:
		case r.HTTP != nil && (r.HTTP.Path != p.path || r.HTTP.Method != p.verb):
		case (r.HTTP != nil || r.DNS != nil) && r.Time.Before(began):
		case r.DNS != nil && r.DNS.Name != p.path[1:]:
		case r.Time.Before(began.Add(-20 * time.Millisecond)): // the kernel's times come by way of another clock
		default:
			mine = append(mine, r)
		}
	}
	return mine
}

func recordHolds(r flow.Record, checks map[string]string) bool {
	for k, want := range checks {
		var got string
		switch k {
		case "verdict":
			got = r.Verdict.String()
		case "reason":
			got = r.Reason
		case "direction":
			got = r.Direction
		case "layer":
			got = r.Layer
		case "policy":
			if r.Rule != nil {
				got = r.Rule.Policy
			} else {
				got = strings.Join(r.Policies, ",")
			}
		case "rule":
			if r.Rule != nil {
				got = r.Rule.Rule
			}
		}
		beginning := k == "rule" && strings.HasPrefix(got, want+".")
		if got != want && !beginning {
			return false
		}
	}
	return true
}

func addrPort(p *place, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.addrs[family], port)
}

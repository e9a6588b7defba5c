package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/policy"
)

// explain asks `weir policy explain` about a probe, of the objects as they are
// now: what is explained must be what happened.
func (s *story) explain(p *probe) error {
	if s.noExplain {
		return nil
	}
	var questions bytes.Buffer
	want := map[int]policy.Verdict{}
	for _, family := range p.families {
		q, verdict, ok := s.question(p, family)
		if !ok {
			continue
		}
		text, err := json.Marshal(q)
		if err != nil {
			return err
		}
		fmt.Fprintf(&questions, "%s\n", text)
		want[family] = verdict
	}
	if len(want) == 0 {
		return nil
	}
	args := []string{"policy", "explain", "--objects", s.objects.Dir, "--batch", "-"}
	if s.failsafe != "" {
		args = append(args, "--host-failsafe", s.failsafe)
	}
	if from := s.places[p.from]; from.pod != nil {
		for _, a := range s.beside[from.pod.Node().Name] {
			args = append(args, "--node-name", from.pod.Node().Name, "--node-address", a.String())
		}
	}
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader(questions.Bytes())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("explain: %w: %s", err, &stderr)
	}
	answers := 0
	for line := range strings.Lines(string(out)) {
		var a struct {
			ID              int
			Verdict         policy.Verdict
			Egress, Ingress struct{ Policy string }
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return fmt.Errorf("explain: %w: %s", err, line)
		}
		answers++
		if a.Verdict == policy.NeedsRequest && !p.isHTTP() {
			a.Verdict = policy.Allowed // the connection is made; requests would decide
		}
		if a.Verdict != want[a.ID] {
			return fmt.Errorf("it came out as %s, but is explained by %s", want[a.ID], line)
		}
		if by := p.checks["policy"]; by != "" && by != a.Egress.Policy && by != a.Ingress.Policy {
			return fmt.Errorf("decided by %s, but explained by %s", by, line)
		}
	}
	if answers != len(want) {
		return fmt.Errorf("explain: %d answers to %d questions: %s", answers, len(want), &stderr)
	}
	return nil
}

// namesFor are the names of an address that count for all, and those that count
// for the namespace of a pod.
func (s *story) namesFor(a netip.Addr, pod string) (all, own []string) {
	namespace, _, _ := strings.Cut(pod, "/")
	for _, n := range s.taught[a] {
		if in, name, ok := strings.Cut(n, "/"); !ok {
			all = append(all, n)
		} else if in == namespace {
			own = append(own, name)
		}
	}
	return all, own
}

// question is a probe as explain takes it, and what must be answered; not ok
// where policy does not tell what comes of it.
func (s *story) question(p *probe, family int) (q map[string]any, want policy.Verdict, ok bool) {
	switch p.want {
	case "ok", "200", "NOERROR", "NXDOMAIN", "SERVFAIL":
		want = policy.Allowed
	case "dropped", "403", "REFUSED":
		want = policy.Denied
	default:
		return nil, "", false
	}
	from, to := s.places[p.from], s.places[p.to]
	target := addrPort(to, family, p.port)
	if pod, ok := s.forwards[target]; ok {
		if s.masqueraded[target] {
			return nil, "", false // another address asks than that of the place
		}
		target = pod
	}
	q = map[string]any{"id": family, "from": from.addrs[family].String(), "to": target.Addr().String(), "port": target.Port(), "protocol": "TCP"}
	switch {
	case p.verb == "udp":
		q["protocol"] = "UDP"
	case p.verb == "resolve":
		kind := "A"
		if p.kind != 0 {
			kind = dns.TypeToString[p.kind]
		}
		q["protocol"], q["dns"] = strings.ToUpper(p.over), map[string]any{"name": p.path[1:], "type": kind}
	case p.verb == "ping":
		delete(q, "port")
		q["protocol"], q["icmpType"] = "ICMP", 8
		if family == 1 {
			q["protocol"], q["icmpType"] = "ICMPv6", 128
		}
	case p.isHTTP():
		host := p.host
		if host == "" {
			host = addrPort(to, family, p.port).String()
		}
		header := http.Header{}
		for k, v := range p.header {
			header[k] = v
		}
		q["http"] = map[string]any{"method": p.verb, "path": p.path, "host": host, "headers": header}
	}
	s.mu.Lock()
	names, own := s.namesFor(target.Addr(), p.from)
	switch {
	case len(names) > 0:
		q["names"] = names
	case len(own) > 0:
		q["names"] = own
		q["namesIn"], _, _ = strings.Cut(p.from, "/")
	}
	s.mu.Unlock()
	if name, ok := strings.CutPrefix(p.from, "host-"); ok {
		q["from"] = "node:" + name // its pods may see another of its addresses
	}
	return q, want, true
}

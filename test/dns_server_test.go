package test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/test/node"
)

// nameServers are the real servers. Each is started with its configuration in a
// directory of its own, and serves the names of a zone file (lines of "NAME. TTL
// TYPE DATA" below test.), or asks another server on behalf of its clients.
var nameServers = map[string]func(dir string, at []netip.Addr, zone string, forward []netip.Addr) ([]string, error){
	"unbound": func(dir string, at []netip.Addr, zone string, forward []netip.Addr) ([]string, error) {
		conf := fmt.Sprintf(`server:
username: ""
chroot: ""
directory: %q
pidfile: ""
use-syslog: no
%saccess-control: 0.0.0.0/0 allow
access-control: ::/0 allow
module-config: "iterator"
use-caps-for-id: yes
max-udp-size: 4096
local-zone: "test." nodefault
remote-control:
control-enable: no
`, dir, lines("interface: %s\n", at))
		if zone != "" {
			conf += "auth-zone:\nname: test.\nzonefile: test.zone\nfor-upstream: no\nfallback-enabled: no\n"
		}
		if len(forward) > 0 {
			conf += "forward-zone:\nname: .\n" + lines("forward-addr: %s\n", forward)
		}
		return []string{"unbound", "-d", "-c", filepath.Join(dir, "unbound.conf")},
			errors.Join(write(dir, "unbound.conf", conf), write(dir, "test.zone", zoneHead+zone))
	},
	"named": named(""),
	// Its zone is signed by keys that it makes.
	"named-signed": named("dnssec-policy default; inline-signing yes;"),
	"dnsmasq": func(dir string, at []netip.Addr, zone string, forward []netip.Addr) ([]string, error) {
		var conf strings.Builder
		fmt.Fprintf(&conf, "keep-in-foreground\nno-hosts\nno-resolv\nuser=root\npid-file=%s/pid\nbind-interfaces\nedns-packet-max=4096\n", dir)
		conf.WriteString(lines("listen-address=%s\n", at))
		if len(forward) > 0 {
			conf.WriteString(lines("server=%s\n", forward))
		} else {
			conf.WriteString("local=/test/\n")
		}
		for line := range strings.Lines(zone) {
			f := strings.Fields(line)
			if len(f) < 4 {
				continue
			}
			name, data := strings.TrimSuffix(f[0], "."), strings.TrimSuffix(f[3], ".")
			switch f[2] {
			case "A", "AAAA":
				fmt.Fprintf(&conf, "host-record=%s,%s,%s\n", name, data, f[1])
			case "CNAME":
				fmt.Fprintf(&conf, "cname=%s,%s,%s\n", name, data, f[1])
			default:
				return nil, fmt.Errorf("dnsmasq is not told here how to serve %s", f[2])
			}
		}
		return []string{"dnsmasq", "--conf-file=" + filepath.Join(dir, "dnsmasq.conf")}, write(dir, "dnsmasq.conf", conf.String())
	},
}

// otherPort is the one where servers with it in their name listen.
const otherPort = "5353"

// named is BIND, with options of its zone.
func named(options string) func(dir string, at []netip.Addr, zone string, forward []netip.Addr) ([]string, error) {
	return func(dir string, at []netip.Addr, zone string, forward []netip.Addr) ([]string, error) {
		conf := fmt.Sprintf(`options {
	directory %q; pid-file none; session-keyfile none; managed-keys-directory %q;
	listen-on { %s; }; listen-on-v6 { %s; };
	allow-query { any; }; allow-transfer { any; }; dnssec-validation no; max-udp-size 4096; edns-udp-size 4096;
	empty-zones-enable no; rrset-order { order cyclic; };
`, dir, dir, at[0], at[1])
		if len(forward) > 0 {
			conf += "\trecursion yes; forward only; forwarders { " + lines("%s; ", forward) + "};\n};\n"
		} else {
			conf += "\trecursion no;\n};\nzone test { type primary; file \"test.zone\"; " + options + " };\n"
		}
		return []string{"named", "-g", "-n", "1", "-c", filepath.Join(dir, "named.conf")},
			errors.Join(write(dir, "named.conf", conf+"controls { };\n"), write(dir, "test.zone", zoneHead+zone))
	}
}

const zoneHead = `$ORIGIN .
test. 60 SOA ns.test. admin.test. 1 60 60 60 60
test. 60 NS ns.test.
ns.test. 60 A 192.0.2.1
`

func lines(format string, addrs []netip.Addr) string {
	var b strings.Builder
	for _, a := range addrs {
		fmt.Fprintf(&b, format, a)
	}
	return b.String()
}

func write(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
}

// need finds a program that a story needs; in CI it must be there.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := node.Program(program)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("needs %s: %v", program, err)
	}
	if err != nil {
		t.Skipf("needs %s: %v", program, err)
	}
	return path
}

// serveDNS starts a real server at a place. What it says is in the story's log
// if that fails.
func (s *story) serveDNS(software string, at *place, zone string, forward ...netip.Addr) (*node.Process, error) {
	port := uint16(53)
	product, other := strings.CutSuffix(software, "-"+otherPort)
	if other {
		port = 5353
	}
	make, ok := nameServers[product]
	if !ok {
		return nil, fmt.Errorf("there is no server %s", software)
	}
	dir := s.t.TempDir()
	args, err := make(dir, at.addrs, zone, forward)
	if err != nil {
		return nil, err
	}
	if other { // of dnsmasq
		args = append(args, "--port="+otherPort)
	}
	cmd := exec.Command(need(s.t, args[0]), args[1:]...)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	s.t.Cleanup(func() {
		if text, err := os.ReadFile(log.Name()); err == nil && s.t.Failed() {
			s.t.Logf("what %s printed:\n%s", software, text)
		}
	})
	p, err := s.nodes[0].StartProcessIn(at.Netns, cmd)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(20 * time.Millisecond) {
		// Of itself, and of both addresses: no Weir is on that path.
		var errs []error
		for _, a := range at.addrs {
			m, err := at.askDNS(context.Background(), "udp", netip.AddrPortFrom(a, port), dns.TypeSOA, "test", 300*time.Millisecond)
			if err == nil && len(forward) == 0 && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeRefused {
				err = errors.New(dns.RcodeToString[m.Rcode])
			}
			errs = append(errs, err)
		}
		if err = errors.Join(errs...); err == nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			return p, fmt.Errorf("%s does not answer: %w", software, err)
		}
	}
}

// askDNS asks a server one question from a new socket.
func (p *place) askDNS(ctx context.Context, network string, server netip.AddrPort, kind uint16, name string, timeout time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := p.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind).SetEdns0(4096, false)
	client := &dns.Client{Net: network, Timeout: timeout, UDPSize: 4096}
	m, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c, UDPSize: 4096})
	return m, err
}

// resolve asks a server for a name; what comes of it is a code of DNS.
func (s *story) resolve(ctx context.Context, p *probe, from *place, server netip.AddrPort, family int) (string, error) {
	kind, name := p.kind, p.path[1:]
	if kind == 0 {
		kind = []uint16{dns.TypeA, dns.TypeAAAA}[family]
	}
	deadline, _ := ctx.Deadline()
	m, err := from.askDNS(ctx, p.over, server, kind, name, time.Until(deadline))
	if err != nil {
		return outcome(err), err
	}
	if m.Truncated {
		return "truncated", nil
	}
	found := addresses(m)
	if place := p.checks["addresses"]; place != "" {
		if want := s.places[place].addrs[family]; !slices.Equal(found, []netip.Addr{want}) {
			return fmt.Sprintf("the addresses %v, not %v", found, want), nil
		}
	}
	if p.believed && m.Rcode == dns.RcodeSuccess {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, a := range found {
			names := append(s.taught[a], name)
			for _, rr := range m.Answer {
				if c, ok := rr.(*dns.CNAME); ok {
					names = append(names, strings.TrimSuffix(c.Target, "."))
				}
			}
			if p.scope != "" {
				for i := len(s.taught[a]); i < len(names); i++ {
					names[i] = p.scope + "/" + names[i]
				}
			}
			slices.Sort(names)
			s.taught[a] = slices.Compact(names)
		}
	}
	return dns.RcodeToString[m.Rcode], nil
}

// addresses are those in an answer, as they come.
func addresses(m *dns.Msg) (out []netip.Addr) {
	for _, rr := range m.Answer {
		var ip []byte
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A.To4()
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a)
		}
	}
	return out
}

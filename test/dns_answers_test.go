package test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// dig asks as people do.
func (s *story) dig(at *place, args ...string) string {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	out, err := at.Run(ctx, "", "dig", append([]string{"+tries=1", "+time=3"}, args...)...)
	if err != nil {
		return err.Error()
	}
	return out
}

// TestAnswersAreWhole: of every size, with every bit and letter as the server
// sent it, from pods on either wiring; and all addresses of a large one are open.
func TestAnswersAreWhole(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "dig")
	s := tell(t, "setups/resolvers.txtar")
	s.must("start")
	ns := s.places["ns"]
	for _, from := range []string{"shop/web", "shop/web2"} {
		for family := range 2 {
			server := "@" + ns.addrs[family].String()
			for _, q := range []struct{ args, want string }{
				{"+noall +answer n1.many.test A", `^n1\.many\.test\.\s+\d+\s+IN\s+A\s+198\.18\.2\.2\n$`},
				{"t.big.test TXT", `(?s)Truncated, retrying in TCP mode.*status: NOERROR.*ANSWER: 15,.*\(TCP\)`},
				{"+noedns +ignore t.big.test TXT", `(?s)status: NOERROR.*flags: qr[^;]* tc`},
				{"+bufsize=4096 +ignore t.big.test TXT", `(?s)status: NOERROR.*flags: qr [^;t]*; QUERY: 1, ANSWER: 15,.*\(UDP\).*MSG SIZE  rcvd: 3\d\d\d`},
				{"+bufsize=4096 +ignore a.big.test A", `(?s)status: NOERROR.*ANSWER: 240,.*\(UDP\)`},
				{"+tcp a.big.test AAAA", `(?s)status: NOERROR.*ANSWER: 140,.*\(TCP\)`},
				{"+noall +question +answer N2.maNY.tEsT", `(?s);N2\.maNY\.tEsT\..*\nN2\.maNY\.tEsT\.\s+\d+\s+IN\s+A\s+198\.18\.2\.3`},
				{"+noall +comments n1.many.test TYPE65399", `status: NOERROR`},
				{"+noall +comments n1.many.test HTTPS", `status: NOERROR`},
				{"+tcp +noall +answer n1.many.test ANY", `(?s)198\.18\.2\.2.*2001:db8:2:2::2|HINFO`},
				{"+cookie +subnet=192.0.2.0/24 n1.many.test", `status: NOERROR`},
				{"+ednsflags=0x40 +dnssec n1.many.test", `(?s)status: NOERROR.*flags: do`},
				{"none.many.test", `status: NXDOMAIN`},
				{"+dnssec test", `(?s)status: REFUSED.*flags: do; udp: 1232`},
				{"+noedns test SOA", `(?s)status: REFUSED.*ADDITIONAL: 0`},
				{"version.bind TXT CH", `status: REFUSED`},
			} {
				if got := s.dig(s.places[from], append([]string{server}, strings.Fields(q.args)...)...); !regexp.MustCompile(q.want).MatchString(got) {
					t.Errorf("%s asks %s for %s: want %s, got\n%s", from, server, q.args, q.want, got)
				}
			}
		}
		for i := range 240 {
			a := netip.AddrFrom4([4]byte{198, 18, 10, byte(i + 1)})
			if i >= 140 {
				a = netip.MustParseAddr(fmt.Sprintf("2001:db8:2:a::%x", i-140+1))
			}
			if err := s.places[from].connects(a, 80, patience); err != nil {
				t.Errorf("%s to %s of a large answer: %v", from, a, err)
			}
		}
	}

	// A resolver in a pod asks in random case, with cookies, and by TCP where it
	// must.
	if _, err := s.serveDNS("unbound", s.places["shop/web"], "", ns.addrs...); err != nil {
		t.Fatal(err)
	}
	own := "@" + s.places["shop/web"].addrs[0].String()
	for _, q := range []struct{ args, want string }{
		{"+short n3.many.test", `^198\.18\.2\.4\n$`},
		{"+bufsize=4096 t.big.test TXT", `(?s)NOERROR.*ANSWER: 15,`},
		{"+short none.many.test", `^$`},
	} {
		if got := s.dig(s.places["shop/web"], append([]string{own}, strings.Fields(q.args)...)...); !regexp.MustCompile(q.want).MatchString(got) {
			t.Errorf("by unbound in the pod, %s: want %s, got\n%s", q.args, q.want, got)
		}
	}
	if err := s.places["shop/web"].connects(manyAddrs(3)[0], 80, patience); err != nil {
		t.Errorf("what unbound in the pod asked for: %v", err)
	}

	s.validate(t)
}

// transfer asks a server for a whole zone.
func (p *place) transfer(ctx context.Context, server netip.AddrPort, zone string) (all []dns.RR, err error) {
	c, err := p.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, err
	}
	t := dns.Transfer{Conn: &dns.Conn{Conn: c}}
	envelopes, err := t.In(new(dns.Msg).SetAxfr(zone), "")
	if err != nil {
		return nil, err
	}
	for e := range envelopes {
		all, err = append(all, e.RR...), e.Error
	}
	return all, err
}

// validate has a signed zone served, and its signatures checked from a pod.
func (s *story) validate(t *testing.T) {
	need(t, "delv")
	s.must("world signed 198.18.0.54 2001:db8:2::54")
	signed := s.places["signed"]
	if _, err := s.serveDNS("named-signed", signed, "n5.many.test. 60 A 198.18.2.6\n"); err != nil {
		t.Fatal(err)
	}
	s.must("apply signed.yaml")
	s.must("wait")
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	// A transfer has all that there is: the signing takes a while.
	const want = 8 // SOA, NS, DNSKEY and NSEC of test, A and NSEC of ns.test and of n5.many.test
	anchor := ""
	for signatures := 0; ctx.Err() == nil && (anchor == "" || signatures < want); time.Sleep(50 * time.Millisecond) {
		signatures = 0
		all, err := signed.transfer(ctx, netip.AddrPortFrom(signed.addrs[0], 53), "test.")
		if err != nil {
			continue
		}
		for _, rr := range all {
			switch rr := rr.(type) {
			case *dns.RRSIG:
				signatures++
			case *dns.DNSKEY:
				if rr.Flags&dns.SEP != 0 {
					anchor = fmt.Sprintf("trust-anchors { test. static-key %d %d %d %q; };\n", rr.Flags, rr.Protocol, rr.Algorithm, rr.PublicKey)
				}
			}
		}
	}
	dir := t.TempDir()
	if err := errors.Join(ctx.Err(), write(dir, "anchor", anchor)); err != nil {
		t.Fatal(err)
	}
	for family := range 2 {
		for _, options := range []string{"+notcp", "+tcp"} {
			out, err := s.places["shop/web"].Run(ctx, "", "delv", "-a", dir+"/anchor", "+root=test", options,
				"@"+signed.addrs[family].String(), "n5.many.test", "A")
			if err != nil || !strings.Contains(out, "; fully validated") || !strings.Contains(out, "198.18.2.6") {
				t.Errorf("delv %s, IPv%d: %v\n%s", options, 4+2*family, err, out)
			}
		}
	}
}

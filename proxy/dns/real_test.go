package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Real servers with the same names in them.
var realServers = map[string]func(t *testing.T, dir string) (args []string){
	"unbound": func(t *testing.T, dir string) []string {
		var zone strings.Builder
		for _, l := range realZone() {
			fmt.Fprintf(&zone, "local-data: '%s'\n", l)
		}
		conf := write(t, dir, "unbound.conf", `server:
username: ""
chroot: ""
directory: "`+dir+`"
pidfile: ""
use-syslog: no
interface: 10.2.0.53
interface: fd02::53
access-control: 0.0.0.0/0 allow
access-control: ::/0 allow
rrset-roundrobin: yes
minimal-responses: yes
max-udp-size: 4096
local-zone: x. static
`+zone.String()+`
remote-control:
control-enable: no
`)
		return []string{"unbound", "-d", "-c", conf}
	},
	"named": func(t *testing.T, dir string) []string {
		var zone strings.Builder
		zone.WriteString("$ORIGIN .\nx. 60 SOA ns.x. admin.x. 1 60 60 60 60\nx. 60 NS ns.x.\nns.x. 60 A 10.2.0.53\n")
		for _, l := range realZone() {
			zone.WriteString(l + "\n")
		}
		write(t, dir, "x.zone", zone.String())
		conf := write(t, dir, "named.conf", `options {
directory "`+dir+`"; pid-file none; session-keyfile none; managed-keys-directory "`+dir+`";
listen-on { 10.2.0.53; }; listen-on-v6 { fd02::53; };
recursion no; allow-query { any; }; allow-transfer { any; }; dnssec-validation no; max-udp-size 4096;
};
controls { };
zone "x" { type primary; file "x.zone"; };
`)
		return []string{"named", "-g", "-n", "1", "-c", conf}
	},
	"dnsmasq": func(t *testing.T, dir string) []string {
		args := []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root", "--pid-file",
			"--port=53", "--bind-interfaces", "--listen-address=10.2.0.53,fd02::53", "--edns-packet-max=4096", "--local=/x/"}
		for _, l := range realZone() {
			f := strings.Fields(l)
			name := strings.TrimSuffix(f[0], ".")
			switch f[2] {
			case "A", "AAAA":
				args = append(args, "--host-record="+name+","+f[3]+",60")
			case "CNAME":
				args = append(args, "--cname="+name+","+strings.TrimSuffix(f[3], ".")+",60")
			case "TXT":
				args = append(args, "--txt-record="+name+","+strings.Trim(strings.Join(f[3:], " "), `"`))
			}
		}
		return args
	},
}

// realZone is what all of them serve.
func realZone() (lines []string) {
	lines = []string{
		"a.x. 60 A 192.0.2.1", "a.x. 60 AAAA 2001:db8::1",
		"alias.x. 60 CNAME second.x.", "second.x. 60 CNAME a.x.",
		"zero.x. 0 A 192.0.2.9",
	}
	for i := range 12 {
		lines = append(lines, fmt.Sprintf(`long.x. 60 TXT "%02d%s"`, i, strings.Repeat("t", 240)))
	}
	return lines
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// run starts a program in the servers' namespace.
func (g *rig) run(args []string) {
	g.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		if os.Getenv("CI") != "" {
			g.t.Fatal(err)
		}
		g.t.Skip(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	g.servers.in(func() { err = cmd.Start() })
	g.must(err)
	g.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if g.t.Failed() {
			g.t.Logf("%s said:\n%s", args[0], out.String())
		}
	})
}

// dig asks as people do.
func (g *rig) dig(args ...string) string {
	g.t.Helper()
	cmd := exec.Command("dig", append([]string{"+tries=1", "+time=3"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	g.pods.in(func() { err = cmd.Start() })
	g.must(err)
	if err := cmd.Wait(); err != nil {
		return fmt.Sprintf("dig %v: %v\n%s", args, err, out.String())
	}
	return out.String()
}

func TestRealServers(t *testing.T) {
	for name, config := range realServers {
		t.Run(name, func(t *testing.T) { testRealServer(t, name, config) })
	}
}

func testRealServer(t *testing.T, name string, config func(*testing.T, string) []string) {
	g := newRig(t)
	if _, err := exec.LookPath("dig"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	g.connections()
	g.run(config(t, t.TempDir()))
	c := g.dial(pod4, netip.AddrPortFrom(server4, 53))
	for end := time.Now().Add(10 * time.Second); ; {
		g.send(c, pack(t, query("a.x", dns.TypeA)))
		if b := g.receive(c, 200*time.Millisecond); b != nil && rcode(b) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it does not start")
		}
	}
	g.rules.Store(&Rules{Egress: allow("a.x", "alias.x", "zero.x", "long.x", "none.x", "x")})
	for _, server := range []string{"@10.2.0.53", "@fd02::53"} {
		for _, q := range []struct{ args, want string }{
			{"+short a.x", `^192\.0\.2\.1\n$`},
			{"+short a.x AAAA", `^2001:db8::1\n$`},
			{"+short A.X", `^192\.0\.2\.1\n$`},
			{"+short alias.x", `(?s)192\.0\.2\.1\n$`},
			{"+noall +answer alias.x", `(?is)alias\.x\..*CNAME\s+second\.x\..*second\.x\..*CNAME\s+a\.x`},
			{"+noall +answer zero.x", `192\.0\.2\.9`},
			{"+dnssec a.x", `(?s)status: NOERROR.*flags: do`},
			{"+bufsize=4096 +ignore long.x TXT", `(?s)status: NOERROR.*flags: qr[^;]*; QUERY: 1, ANSWER: 12`},
			{"+noedns +ignore long.x TXT", `(?s)flags: qr[^;]* tc`},
			{"+noedns long.x TXT", `(?s)Truncated, retrying in TCP mode.*ANSWER: 12.*\(TCP\)`},
			{"+tcp a.x", `(?s)192\.0\.2\.1.*\(TCP\)`},
			{"+tcp +keepopen a.x alias.x a.x AAAA", `(?s)192\.0\.2\.1.*CNAME.*2001:db8::1`},
			{"none.x", `status: NXDOMAIN`},
			{"a.x TYPE65399", `status: NOERROR`},
			{"second.x", `status: REFUSED`},
			{"+tcp second.x", `(?s)status: REFUSED.*\(TCP\)`},
			{"+cookie second.x", `(?s)status: REFUSED.*EDNS: version: 0`},
		} {
			if name == "unbound" && strings.Contains(q.args, "alias") && !strings.Contains(q.args, "+tcp") {
				continue // it follows no aliases in local data
			}
			got := g.dig(append([]string{server}, strings.Fields(q.args)...)...)
			if !regexp.MustCompile(q.want).MatchString(got) {
				t.Errorf("dig %s %s: want %s, got\n%s", q.args, server, q.want, got)
			}
		}
		if name == "named" {
			if got := g.dig(server, "x", "AXFR"); !strings.Contains(got, "alias.x.") || !regexp.MustCompile(`XFR size: 2\d records`).MatchString(got) {
				t.Errorf("transfer:\n%s", got)
			}
		}
	}
}

package test

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/flow"
)

// TestWhatIsShownOfNames: what a user sees of names and questions, in words and
// for machines.
func TestWhatIsShownOfNames(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/resolvers.txtar")
	s.must("start")
	w := s.nodes[1].Weir()
	web := s.places["shop/web"]
	for _, q := range []struct {
		server, network, name string
		kind                  uint16
	}{
		{"ns", "udp", "N1.many.test", dns.TypeA},
		{"ns", "udp", "n1.many.test", dns.TypeAAAA},
		{"kube-system/kube-dns", "tcp", "n2.many.test", dns.TypeA},
		{"ns", "udp", "t.big.test", dns.TypeTXT},
		{"ns", "udp", "www.elsewhere.test", dns.TypeHTTPS},
		{"ns", "tcp", "none.many.test", dns.TypeMX},
	} {
		if _, err := web.askDNS(t.Context(), q.network, addrPort(s.places[q.server], 0, 53), q.kind, q.name, patience); err != nil {
			t.Fatal(err)
		}
	}
	live, err := web.DialContext(t.Context(), "tcp", "198.18.2.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	shown := func(want string, args ...string) {
		t.Helper()
		re := regexp.MustCompile(want)
		for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) { // records take a moment
			out, err := w.Command(t.Context(), args[0], args[1:]...)
			if err == nil && re.MatchString(out) {
				return
			}
			if err != nil || time.Now().After(end) {
				t.Errorf("weir %s: %v; want %s, got\n%s", strings.Join(args, " "), err, want, out)
				return
			}
		}
	}
	shown(`^NAME +ADDRESS +LIFE +ALIVE +IDENTITY +SELECTORS +PODS
shop/n1\.many\.test +198\.18\.2\.2 +(1m0|5\d)s +yes +(\d+) +shop/\*\.many\.test +shop/web
shop/n1\.many\.test +2001:db8:2:2::2 +(1m0|5\d)s +no +\d+ +shop/\*\.many\.test +shop/web
n2\.many\.test +198\.18\.2\.3 +(1m0|5\d)s +no +\d+ +\*\.many\.test +shop/web
$`, "fqdn")
	shown(`^\{"name":"n2\.many\.test","addresses":\[\{"address":"198\.18\.2\.3","expires":"\d{4}-[^"]*Z","alive":false,"identity":\d+\}\],"selectors":\[\{"matchPattern":"\*\.many\.test"\}\],"pods":\["shop/web"\]\}\n$`,
		"fqdn", "-o", "json", "N2.")
	shown(`^no names\n$`, "fqdn", "nobody.asked")
	shown(`, 2 names for 3 addresses`, "status")
	shown(`(?m)FORWARDED +shop/web:\d+ -> 198\.18\.2\.2:80 \(shop/\*\.many\.test\) TCP +policy-allowed \(egress\) +CiliumNetworkPolicy shop/web spec\.egress\[2\]`, "flows", "--layer", "l4")
	for _, line := range []string{
		`FORWARDED +shop/web:\d+ -> 198\.18\.0\.53:53 \(world-ipv4\) UDP +A N1\.many\.test NOERROR 198\.18\.2\.2 \S+s +dns-rule \(egress\) +CiliumNetworkPolicy shop/web spec\.egress\[1\]\.toPorts\[0\]\.rules\.dns\[0\] `,
		`FORWARDED +shop/web:\d+ -> 10\.96\.0\.10:53 \(kube-system/kube-dns\) TCP +A n2\.many\.test NOERROR 198\.18\.2\.3 \S+s +dns-rule \(egress\) +CiliumNetworkPolicy shop/web spec\.egress\[0\]`,
		`FORWARDED +shop/web:\d+ -> \S+ \S+ UDP +TXT t\.big\.test NOERROR \S+s +dns-rule`,
		`FORWARDED +shop/web:\d+ -> \S+ \S+ TCP +MX none\.many\.test NXDOMAIN \S+s +dns-rule`,
		`DROPPED +shop/web:\d+ -> 198\.18\.0\.53:53 \(world-ipv4\) UDP +HTTPS www\.elsewhere\.test REFUSED +dns-denied \(egress\) +no rule in CiliumNetworkPolicy shop/web\n`,
	} {
		shown(line, "flows", "--layer", "l7")
	}
	shown(`^[^\n]*www\.elsewhere[^\n]*\n$`, "flows", "--name", "elsewhere", "--verdict", "dropped")

	out, err := w.Command(t.Context(), "flows", "--name", "^N1", "-o", "json")
	var r flow.Record
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	if err != nil || r.DNS == nil || r.DNS.Name != "N1.many.test" || r.DNS.Type != "A" || r.DNS.RCode != "NOERROR" || len(r.DNS.Addresses) != 1 || r.DNS.Latency <= 0 ||
		r.Layer != "L7" || r.Rule == nil || r.Source.Pod != "web" || r.Dest.Addr != s.places["ns"].addrs[0] {
		t.Errorf("weir flows: %v, %s", err, out)
	}

	for _, e := range []struct {
		args, want string
		status     int
	}{
		{"--to service:kube-system/kube-dns --dns-name n1.many.test", `(?s)^ALLOWED +shop/web -> service:kube-system/kube-dns, UDP port 53, A n1\.many\.test\n\negress +allowed +a DNS rule allows the question\n +CiliumNetworkPolicy shop/web +spec\.egress\[0\]\.toPorts\[0\]\.rules\.dns\[0\] `, 0},
		{"--to service:kube-system/kube-dns --dns-name www.elsewhere.test --dns-type HTTPS --protocol TCP", `(?s)^DENIED .*TCP port 53, HTTPS www\.elsewhere\.test\n\negress +denied +no DNS rule of 1 allows www\.elsewhere\.test\n`, 1},
		{"--to 198.18.2.2 --port 80", `(?s)^DENIED .*not CiliumNetworkPolicy shop/web +spec\.egress\[2\] [^\n]*\n +198\.18\.2\.2 \(outside\) is not among its peers: name \*\.many\.test; name \*\.big\.test`, 1},
		{"--to 198.18.2.2 --port 80 --name n1.many.test", `(?s)^ALLOWED +shop/web -> 198\.18\.2\.2 \(n1\.many\.test\), TCP port 80\n\negress +allowed +a rule allows it\n +CiliumNetworkPolicy shop/web +spec\.egress\[2\]`, 0},
		{"--to kube-system/near --dns-name t.big.test -o json", `(?s)"verdict": "denied",.*"reason": "no DNS rule of 1 allows t\.big\.test"`, 1},
		{"--to kube-system/near --port 53 --protocol UDP -o json", `(?s)^\{\n +"verdict": "l7"`, 0},
	} {
		cmd := exec.Command(program, append([]string{"policy", "explain", "--objects", s.objects.Dir, "--from", "shop/web"}, strings.Fields(e.args)...)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != e.status || !regexp.MustCompile(e.want).Match(out) {
			t.Errorf("weir policy explain %s: %v; want %d, %s, got\n%s", e.args, err, e.status, e.want, out)
		}
	}
}

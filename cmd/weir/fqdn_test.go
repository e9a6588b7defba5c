package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/proxy/control"
)

var namesAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// namesServer is an agent whose proxy learned two names.
func namesServer(fail error) *agentServer {
	bytesOf := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	learned := []*control.Name{
		{Name: "www.example.test", Addresses: []*control.NameAddress{{Address: bytesOf("192.0.2.9"), Expires: namesAt.Add(time.Hour).UnixNano()}}},
		{
			Name: "api.example.test",
			Addresses: []*control.NameAddress{
				{Address: bytesOf("2001:db8::1"), Expires: namesAt.Add(-time.Second).UnixNano(), Alive: true, Identity: 300},
				{Address: bytesOf("192.0.2.1"), Expires: namesAt.Add(90 * time.Second).UnixNano(), Identity: 301},
			},
			Selectors: []*control.NameSelector{{Name: "api.example.test"}, {Pattern: "*.example.test"}},
			Pods:      [][]byte{bytesOf("10.0.0.1"), bytesOf("10.0.0.2")},
		},
		{
			Name: "api.example.test", Namespace: "shop",
			Addresses: []*control.NameAddress{{Address: bytesOf("192.0.2.7"), Expires: namesAt.Add(time.Minute).UnixNano(), Identity: 302}},
			Selectors: []*control.NameSelector{{Name: "api.example.test", Namespace: "shop"}},
		},
	}
	return &agentServer{
		names: func(_ context.Context, match string, each func(*control.Name) error) error {
			for _, n := range learned {
				if strings.Contains(n.Name, match) {
					if err := each(n); err != nil {
						return err
					}
				}
			}
			return fail
		},
		podAt: func(a netip.Addr) (string, string, bool) { return "shop", "frontend", a.String() == "10.0.0.1" },
	}
}

func askNames(t *testing.T, s *agentServer, match string) ([]nameLine, error) {
	t.Helper()
	w := httptest.NewRecorder()
	s.serveNames(w, httptest.NewRequest("GET", "/fqdn?match="+match, nil))
	return readNames(w.Body)
}

func TestNamesText(t *testing.T) {
	names, err := askNames(t, namesServer(nil), "")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printNames(&out, names, namesAt); err != nil {
		t.Fatal(err)
	}
	golden(t, "fqdn.txt", out.String())
	out.Reset()
	if err := printNames(&out, nil, namesAt); err != nil || out.String() != "no names\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	// Whatever a proxy says is a name.
	out.Reset()
	strange := []nameLine{{Name: "a\x1b[2J\n.test", Addresses: []nameAddress{{Address: netip.MustParseAddr("192.0.2.1")}}}}
	if err := printNames(&out, strange, namesAt); err != nil || !strings.Contains(out.String(), "a?[2J?.test") {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestNamesFilter(t *testing.T) {
	for match, want := range map[string]int{"": 3, "API.Example": 2, "api.example.test.": 2, "nothing": 0} {
		names, err := askNames(t, namesServer(nil), match)
		if err != nil || len(names) != want {
			t.Errorf("%q: %d names, %v", match, len(names), err)
		}
	}
}

func TestNamesJSON(t *testing.T) {
	names, err := askNames(t, namesServer(nil), "api")
	if err != nil {
		t.Fatal(err)
	}
	if n := names[1]; len(names) != 2 || names[0].Namespace != "" || n.Namespace != "shop" || n.Selectors[0] != (dnsrules.Selector{Name: "api.example.test", Namespace: "shop"}) {
		t.Errorf("%+v", names)
	}
	text, err := json.Marshal(names[0])
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	first := got["addresses"].([]any)[0].(map[string]any)
	if got["name"] != "api.example.test" || first["address"] != "192.0.2.1" || first["identity"] != 301.0 || first["alive"] != false ||
		got["pods"].([]any)[0] != "shop/frontend" || got["pods"].([]any)[1] != "10.0.0.2" ||
		got["selectors"].([]any)[1].(map[string]any)["matchPattern"] != "*.example.test" {
		t.Errorf("%s", text)
	}
}

// What the proxy can't tell any more is an error, not an end.
func TestNamesCutShort(t *testing.T) {
	if _, err := askNames(t, namesServer(errors.New("no proxy is running")), ""); err == nil || err.Error() != "no proxy is running" {
		t.Errorf("got %v", err)
	}
	if _, err := readNames(io.MultiReader(strings.NewReader(`{"name":"a"}`+"\n"), strings.NewReader(`{"na`))); err == nil {
		t.Error("half a line is taken for none")
	}
}

// servers are asked by UDP and by TCP.
func servers(list ...string) (out []policy.Server) {
	for _, s := range list {
		a := netip.MustParseAddrPort(s)
		out = append(out, policy.Server{Addr: a, Protocol: unix.IPPROTO_UDP}, policy.Server{Addr: a, Protocol: unix.IPPROTO_TCP})
	}
	return out
}

func TestNameservers(t *testing.T) {
	const text = `# made by hand
nameserver 192.0.2.53
  nameserver	2001:db8::53 # the other
nameserver 127.0.0.53
nameserver ::1
nameserver 0.0.0.0
nameserver fe80::1%eth0
nameserver nonsense
;nameserver 192.0.2.99
nameserver
search example.test
`
	want := servers("192.0.2.53:53", "[2001:db8::53]:53", "[fe80::1]:53")
	if got := nameservers(text); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestDNSFlags(t *testing.T) {
	parse := func(args ...string) (*dnsOptions, error) {
		o := &dnsOptions{}
		cmd := &cobra.Command{}
		o.addFlags(cmd)
		if err := cmd.ParseFlags(args); err != nil {
			return o, err
		}
		return o, o.check()
	}
	o, err := parse()
	if err != nil {
		t.Fatal(err)
	}
	if s := o.settings(); s.MinTtl != int64(time.Minute) || s.MaxTtl != int64(24*time.Hour) || s.PerName != 1000 || s.Nxdomain || len(s.Deny) > 0 {
		t.Errorf("by default: %v", s)
	}
	o, err = parse("--dns-server", "192.0.2.1:5353", "--dns-server=2001:db8::1", "--fqdn-min-ttl", "5s", "--fqdn-max-ttl", "1h",
		"--fqdn-max-addresses-per-name", "7", "--dns-denied", "nxdomain", "--fqdn-deny-cidr", "10.1.2.3/8,2001:db8::7", "--fqdn-deny-cidr", "192.0.2.0/24")
	if err != nil {
		t.Fatal(err)
	}
	if s := o.settings(); s.MinTtl != int64(5*time.Second) || s.MaxTtl != int64(time.Hour) || s.PerName != 7 || !s.Nxdomain || !slices.Equal(s.Deny, []string{"10.0.0.0/8", "2001:db8::7/128", "192.0.2.0/24"}) {
		t.Errorf("%v", s)
	}
	dir := t.TempDir()
	first, second := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "stub.conf")
	o.files = []string{first, second}
	given := servers("192.0.2.1:5353", "[2001:db8::1]:53")
	check := func(when string, own ...string) {
		t.Helper()
		for i, a := range own {
			own[i] = netip.AddrPortFrom(netip.MustParseAddr(a), 53).String()
		}
		if got := o.resolvers(); !slices.Equal(got, append(servers(own...), given...)) {
			t.Errorf("%s: %v", when, got)
		}
	}
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check("without files")
	write(first, "nameserver 127.0.0.53\n")
	check("a resolver of this host only")
	write(second, "nameserver 192.0.2.2\n")
	check("what that one asks", "192.0.2.2")
	write(first, "nameserver 192.0.2.3\n")
	check("the node's own", "192.0.2.3")

	for _, args := range [][]string{
		{"--dns-server", "example.test"}, {"--dns-server", "fe80::1%eth0"}, {"--fqdn-min-ttl", "0s"}, {"--fqdn-min-ttl", "2h", "--fqdn-max-ttl", "1h"},
		{"--fqdn-max-addresses-per-name", "0"}, {"--dns-denied", "drop"},
		{"--fqdn-deny-cidr", "10.0.0.0/33"}, {"--fqdn-deny-cidr", "example.test"}, {"--fqdn-deny-cidr", "::ffff:10.0.0.0/104"}, {"--fqdn-deny-cidr", "fe80::1%eth0"},
	} {
		if _, err := parse(args...); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

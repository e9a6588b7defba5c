package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/test/node"
)

// demoNames are the hosts of the world beside its own addresses, by what DNS
// calls them; the last has no name.
var demoNames = []struct {
	name  string
	addrs []netip.Addr
}{
	{"api.example.test", []netip.Addr{netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("2001:db8:1::80")}},
	{"img7.cdn.example.test", []netip.Addr{netip.MustParseAddr("198.51.100.87"), netip.MustParseAddr("2001:db8:1::87")}},
	{"img8.cdn.example.test", []netip.Addr{netip.MustParseAddr("198.51.100.88"), netip.MustParseAddr("2001:db8:1::88")}},
	{"another host", []netip.Addr{netip.MustParseAddr("198.51.100.99"), netip.MustParseAddr("2001:db8:1::99")}},
}

// dnsmasqConf is a whole configuration. api.example.test is an alias, as such
// names mostly are.
const dnsmasqConf = `keep-in-foreground
no-resolv
no-hosts
user=root
pid-file=%[1]s/pid
local=/test/
local-ttl=30
host-record=eu.api-provider.test,198.51.100.80,2001:db8:1::80
cname=api.example.test,eu.api-provider.test
host-record=img7.cdn.example.test,198.51.100.87,2001:db8:1::87
host-record=img8.cdn.example.test,198.51.100.88,2001:db8:1::88
host-record=www.example.test,198.51.100.99,2001:db8:1::99
`

// addNames gives the world the addresses behind the names.
func (d *demo) addNames(ctx context.Context) error {
	for _, n := range demoNames {
		for _, a := range n.addrs {
			args := []string{"addr", "add", a.String(), "dev", "eth0"}
			if a.Is6() {
				args = append(args, "nodad")
			}
			if _, err := d.network.Outside.Run(ctx, "", "ip", args...); err != nil {
				return fmt.Errorf("give the world an address: %w", err)
			}
		}
		d.places[n.name] = &demoPlace{Netns: d.network.Outside, title: n.name, addrs: n.addrs, port: 80}
	}
	return nil
}

// serveDNS starts dnsmasq in the pod that is the cluster's DNS.
func (d *demo) serveDNS(ctx context.Context) error {
	program, err := node.Program("dnsmasq")
	if err != nil {
		return fmt.Errorf("find dnsmasq: %w", err)
	}
	dir := filepath.Join(d.dir, "dnsmasq")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make dnsmasq's directory: %w", err)
	}
	conf := filepath.Join(dir, "dnsmasq.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, dnsmasqConf, dir), 0o644); err != nil {
		return fmt.Errorf("configure dnsmasq: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return fmt.Errorf("make dnsmasq's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(program, "--conf-file="+conf)
	cmd.Stdout, cmd.Stderr = log, log
	place := d.places["dns"]
	if _, err := d.node.StartProcessIn(place.Netns, cmd); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, _, err = resolve(ctx, place, place.addrs[1], demoNames[0].name, dns.TypeA); err == nil || ctx.Err() != nil {
			return err
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("dnsmasq does not answer: %w\n%s", err, text)
		}
	}
}

// resolve asks a server from a place and returns what became of it, as a code
// of DNS, and the source port.
func resolve(ctx context.Context, from *demoPlace, server netip.Addr, name string, qtype uint16) (code string, port uint16, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, "udp", node.To(server, 53))
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	answer, _, err := (&dns.Client{Timeout: time.Second}).ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c})
	if err != nil {
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			err = context.DeadlineExceeded
		}
		return "", port, err
	}
	if answer.Rcode == dns.RcodeSuccess && len(answer.Answer) == 0 {
		return "no address", port, nil
	}
	return dns.RcodeToString[answer.Rcode], port, nil
}

// actNames shows egress by name.
func (d *demo) actNames(ctx context.Context) error {
	d.screen.heading("2  Egress by name")
	const by = "CiliumNetworkPolicy shop/worker"
	const api, img, other = "api.example.test", "img7.cdn.example.test", "another host"
	for _, a := range []demoAsk{
		{from: "worker", to: api, verb: "GET", path: "/v1/items", want: demoNothing, by: by},
		{from: "worker", to: "dns", verb: demoResolve, path: api, want: demoResolved, by: by},
		{from: "worker", to: api, verb: "GET", path: "/v1/items", want: "200", by: by},
		{from: "worker", to: api, verb: "DELETE", path: "/v1/items/7", want: "403", by: by},
		{from: "worker", to: "dns", verb: demoResolve, path: img, ipv6: true, want: demoResolved, by: by},
		{from: "worker", to: img, verb: "connect", ipv6: true, want: demoConnected, by: by},
		{from: "worker", to: "dns", verb: demoResolve, path: "www.example.test", want: demoRefused, by: by},
		{from: "worker", to: other, verb: "connect", want: demoNothing, by: by},
	} {
		if _, err := d.ask(ctx, a, nil); err != nil {
			return err
		}
	}
	return nil
}

// resolveFor asks the cluster's DNS on behalf of an ask.
func (a demoAsk) resolveFor(ctx context.Context, from *demoPlace, server netip.Addr) (string, uint16, error) {
	qtype := dns.TypeA
	if a.ipv6 {
		qtype = dns.TypeAAAA
	}
	return resolve(ctx, from, server, strings.TrimSpace(a.path), qtype)
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

// dnsOptions are the agent's flags about names and who is believed about them.
type dnsOptions struct {
	servers        []string
	minTTL, maxTTL time.Duration
	perName        int
	denied         string
	deny           []string

	believed []policy.Server // servers, parsed
	denyCIDR []string        // deny, normal and with a length
	files    []string        // that name the node's own resolvers
}

func (o *dnsOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.servers, "dns-server", nil, "believe what this server (ADDRESS or ADDRESS:PORT) says names stand for, for all policies, besides the cluster's DNS, the node's resolvers and servers that DNS rules name")
	f.DurationVar(&o.minTTL, "fqdn-min-ttl", time.Minute, "an address stands for its name at least so long after an answer")
	f.DurationVar(&o.maxTTL, "fqdn-max-ttl", 24*time.Hour, "and at most so long, unless a connection to it is open")
	f.IntVar(&o.perName, "fqdn-max-addresses-per-name", 1000, "how many addresses a name can have; the longest unused go")
	f.StringSliceVar(&o.deny, "fqdn-deny-cidr", nil, "no name stands for an address in this `CIDR`, whatever servers say; besides those of pods, nodes, services, and the metadata services of clouds (repeatable)")
	f.StringVar(&o.denied, "dns-denied", "refused", "what a denied question is answered with: refused, or nxdomain (musl, as in Alpine, ends its search list at the first)")
}

func (o *dnsOptions) check() error {
	errs := []error{oneOf("dns-denied", o.denied, "refused", "nxdomain")}
	for _, s := range o.servers {
		a, err := parseServer(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("dns-server %q: %w", s, err))
			continue
		}
		o.believed = append(o.believed, bothWays(a)...)
	}
	for _, s := range o.deny {
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("fqdn-deny-cidr %q is no CIDR", s))
			continue
		}
		o.denyCIDR = append(o.denyCIDR, p.Masked().String())
	}
	if o.minTTL <= 0 || o.maxTTL < o.minTTL {
		errs = append(errs, fmt.Errorf("fqdn-min-ttl %v and fqdn-max-ttl %v: must be above 0, and the second not below the first", o.minTTL, o.maxTTL))
	}
	if o.perName < 1 {
		errs = append(errs, fmt.Errorf("fqdn-max-addresses-per-name %d: must be above 0", o.perName))
	}
	// Where the first one names a resolver of this host only, that one's own are
	// what pods with the node's resolvers are given.
	o.files = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
	return errors.Join(errs...)
}

// settings are for the proxy.
func (o *dnsOptions) settings() *control.DNSSettings {
	return &control.DNSSettings{
		MinTtl: int64(o.minTTL), MaxTtl: int64(o.maxTTL), PerName: uint32(o.perName), Nxdomain: o.denied == "nxdomain", Deny: o.denyCIDR,
	}
}

// resolvers are the servers that are believed besides those that objects name.
// The node's own are read each time: they change with its network.
func (o *dnsOptions) resolvers() []policy.Server {
	for _, file := range o.files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // as a node without resolvers
		}
		if own := nameservers(string(text)); len(own) > 0 {
			return append(own, o.believed...)
		}
	}
	return o.believed
}

// portDNS is where servers are asked that are known by their address.
const portDNS = 53

// parseServer reads an address, with or without a port.
func parseServer(text string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(text)
	server := netip.AddrPortFrom(a, portDNS)
	if err != nil {
		server, err = netip.ParseAddrPort(text)
	}
	if err != nil || server.Port() == 0 || server.Addr().Zone() != "" {
		return server, errors.New("it is no address, with or without a port")
	}
	return server, nil
}

// bothWays is a server that is asked by UDP and by TCP.
func bothWays(a netip.AddrPort) []policy.Server {
	return []policy.Server{{Addr: a, Protocol: unix.IPPROTO_UDP}, {Addr: a, Protocol: unix.IPPROTO_TCP}}
}

// nameservers are those of a resolv.conf, but for this host: a pod that asks
// there asks itself.
func nameservers(text string) (out []policy.Server) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			out = append(out, bothWays(netip.AddrPortFrom(a.WithZone(""), portDNS))...)
		}
	}
	return out
}

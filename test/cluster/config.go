package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
)

// DefaultName is the name of the cluster that `make cluster` makes.
const DefaultName = "weir-cluster"

// Config says what a cluster is like. The zero value is a cluster of one node
// with point-to-point pods, IPv4 and kube-proxy in iptables mode.
type Config struct {
	// Name of the cluster, DefaultName if empty: letters, digits and dashes.
	Name string
	// NodeCount is how many nodes there are, one if 0; at most 200.
	NodeCount int
	// CNI is the plugin that makes pods' interfaces: "ptp" (a route per pod, the
	// default) or "bridge" (all pods of a node on cni0).
	CNI string
	// DualStack adds IPv6 to everything.
	DualStack bool
	// ProxyMode of kube-proxy: "iptables" (the default) or "nftables".
	ProxyMode string
	// DNSUpstream is the server that CoreDNS asks for names outside of the
	// cluster; those do not exist if it is empty.
	DNSUpstream string
	// Controllers of the controller manager, in the form of its flag
	// --controllers ("*,-node-lifecycle-controller"); all if empty.
	Controllers string
	// NoUserNamespaces: on nodes none can be made, as where
	// user.max_user_namespaces is 0.
	NoUserNamespaces bool
	// Port of the API server on the host's loopback address, a free one if 0.
	Port int
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,40}$`)

func (c Config) withDefaults() (Config, error) {
	c.Name = cmp.Or(c.Name, DefaultName)
	c.NodeCount = cmp.Or(c.NodeCount, 1)
	c.CNI = cmp.Or(c.CNI, "ptp")
	c.ProxyMode = cmp.Or(c.ProxyMode, "iptables")
	c.Controllers = cmp.Or(c.Controllers, "*")
	switch {
	case !validName.MatchString(c.Name):
		return c, fmt.Errorf("name of cluster %q: want letters, digits and dashes", c.Name)
	case c.NodeCount < 1 || c.NodeCount > 200:
		return c, fmt.Errorf("%d nodes: want 1 to 200", c.NodeCount)
	case c.CNI != "ptp" && c.CNI != "bridge":
		return c, fmt.Errorf("CNI plugin %q: want ptp or bridge", c.CNI)
	case c.ProxyMode != "iptables" && c.ProxyMode != "nftables":
		return c, fmt.Errorf("kube-proxy mode %q: want iptables or nftables", c.ProxyMode)
	}
	if c.DNSUpstream != "" {
		if _, err := netip.ParseAddr(c.DNSUpstream); err != nil {
			return c, fmt.Errorf("DNS upstream: %w", err)
		}
	}
	return c, nil
}

// dir is where everything of a cluster is kept while it is up.
func dir(name string) string { return filepath.Join("/run", name) }

// Addresses, the same in every cluster: they share no network.
const (
	dnsService = "10.96.0.10"
	apiPort    = 6443
)

// families picks the first of two, or both in a dual-stack cluster.
func families[T any](c Config, v4, v6 T) []T {
	if c.DualStack {
		return []T{v4, v6}
	}
	return []T{v4}
}

// lanAddrs are a machine's addresses on the bridge: 1 is the router, 10 the
// control plane, 11 the first node.
func (c Config) lanAddrs(n int) []netip.Addr {
	return families(c, netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n)))
}

func (c Config) podCIDRs(node int) []netip.Prefix {
	return families(c, netip.MustParsePrefix(fmt.Sprintf("10.77.%d.0/24", node)), netip.MustParsePrefix(fmt.Sprintf("fd77:0:0:%d::/64", node)))
}

func (c Config) clusterCIDRs() []string { return families(c, "10.77.0.0/16", "fd77::/48") }
func (c Config) serviceCIDRs() []string { return families(c, "10.96.0.0/16", "fd96::/112") }

// joined is a list as Kubernetes' flags want it.
func joined[T any](list []T) string {
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = fmt.Sprint(e)
	}
	return strings.Join(parts, ",")
}

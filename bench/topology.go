package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// gateway is the address every pod routes through; no interface has it, a
// permanent neighbour entry stands in for it.
const gateway = "169.254.1.1"

// node is a host network namespace with pods behind veth pairs, routed by
// address: the shape CNI plugins like ptp and Calico make.
type node struct {
	name   string // of the namespace
	prefix netip.Prefix
	addr   netip.Addr // the node's own
	pods   []pod
	// world is a namespace that has every outside address.
	world string
	// servers run in the server pod.
	servers []*process
}

// pod is a network namespace with one address.
type pod struct {
	name string // in objects
	ns   string // namespace, as in /run/netns
	dev  string // host side of its veth
	addr netip.Addr
}

// newNode makes the namespace and pods numbered from 1, the third part of
// their address being subnet.
func newNode(name string, subnet, pods int) (*node, error) {
	n := &node{
		name:   name,
		world:  name + "-world",
		prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, byte(subnet), 0}), 24),
		addr:   netip.AddrFrom4([4]byte{10, 89, byte(subnet), 1}),
	}
	if err := ip("netns", "add", name); err != nil {
		return n, err
	}
	err := inNamespace(name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=1",
		"net.ipv4.conf.default.rp_filter=1")
	if err != nil {
		return n, err
	}
	if err := ipBatch(name, []string{"link set lo up", fmt.Sprintf("addr add %s/32 dev lo", n.addr)}); err != nil {
		return n, err
	}
	for i := range pods {
		n.pods = append(n.pods, pod{
			name: fmt.Sprintf("pod-%d", i+1),
			ns:   fmt.Sprintf("%s-%d", name, i+1),
			dev:  fmt.Sprintf("pod%d", i+1),
			addr: netip.AddrFrom4([4]byte{10, 88, byte(subnet), byte(i + 1)}),
		})
	}
	return n, n.wire()
}

// wire makes the pods' namespaces, veth pairs, addresses and routes.
func (n *node) wire() error {
	var spaces, host []string
	mac := func(side, pod int) string { return fmt.Sprintf("02:88:00:00:%02x:%02x", side, pod) }
	for i, p := range n.pods {
		spaces = append(spaces, "netns add "+p.ns)
		host = append(host,
			fmt.Sprintf("link add %s address %s type veth peer name eth0 address %s netns %s", p.dev, mac(1, i), mac(2, i), p.ns),
			fmt.Sprintf("link set %s up", p.dev),
			fmt.Sprintf("route add %s/32 dev %s src %s", p.addr, p.dev, n.addr),
			fmt.Sprintf("neigh add %s lladdr %s dev %s nud permanent", p.addr, mac(2, i), p.dev))
	}
	if err := ipBatch("", spaces); err != nil {
		return err
	}
	if err := ipBatch(n.name, host); err != nil {
		return err
	}
	if err := n.wireWorld(); err != nil {
		return err
	}
	for i, p := range n.pods {
		inside := []string{
			"link set lo up",
			"link set eth0 up",
			fmt.Sprintf("addr add %s/32 dev eth0", p.addr),
			fmt.Sprintf("neigh add %s lladdr %s dev eth0 nud permanent", gateway, mac(1, i)),
			fmt.Sprintf("route add default via %s dev eth0 onlink", gateway),
		}
		if err := ipBatch(p.ns, inside); err != nil {
			return err
		}
	}
	for _, p := range []pod{n.client(), n.server()} {
		// Loads that open many connections in a second need the ports.
		err := inNamespace(p.ns, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1100 64900", "net.core.somaxconn=16384",
			"net.ipv4.tcp_max_syn_backlog=16384")
		if err != nil {
			return err
		}
	}
	return nil
}

// wireWorld makes a namespace beyond the node that has every address of
// worldNet.
func (n *node) wireWorld() error {
	if err := ip("netns", "add", n.world); err != nil {
		return err
	}
	err := ipBatch(n.name, []string{
		"link add world address 02:88:00:00:03:00 type veth peer name eth0 address 02:88:00:00:04:00 netns " + n.world,
		"link set world up",
		fmt.Sprintf("neigh add %s lladdr 02:88:00:00:04:00 dev world nud permanent", gateway),
		fmt.Sprintf("route add %s via %s dev world onlink src %s", worldNet, gateway, n.addr),
	})
	if err != nil {
		return err
	}
	err = ipBatch(n.world, []string{
		"link set lo up",
		"link set eth0 up",
		fmt.Sprintf("neigh add %s lladdr 02:88:00:00:03:00 dev eth0 nud permanent", gateway),
		fmt.Sprintf("route add default via %s dev eth0 onlink", gateway),
		fmt.Sprintf("route add local %s dev lo", worldNet),
	})
	if err != nil {
		return err
	}
	return inNamespace(n.world, "sysctl", "-qw", "net.core.somaxconn=16384", "net.ipv4.tcp_max_syn_backlog=16384")
}

// client and server are the two pods that every cell runs between.
func (n *node) client() pod { return n.pods[0] }
func (n *node) server() pod { return n.pods[1] }

// idlers are the pods that hold idle connections: several where there are
// several, since Weir gives one pod only a part of all that it can have.
func (n *node) idlers() []pod {
	if len(n.pods) < 10 {
		return []pod{n.client()}
	}
	return n.pods[2:10]
}

// serverPids are the processes of the servers.
func (n *node) serverPids() []int {
	var pids []int
	for _, p := range n.servers {
		pids = append(pids, p.tree()...)
	}
	return pids
}

// remove deletes the namespaces, and with them everything that hangs on them.
func (n *node) remove() {
	lines := []string{"netns del " + n.name, "netns del " + n.world}
	for _, p := range n.pods {
		lines = append(lines, "netns del "+p.ns)
	}
	_ = ipBatch("", lines) // those that were not made yet fail
}

func ip(args ...string) error { return command("ip", args...) }

// ipBatch has ip carry out all lines, in a namespace where one is named.
func ipBatch(ns string, lines []string) error {
	args := []string{"-force", "-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", ns}, args...)
	}
	cmd := exec.Command("ip", args...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -n %s -batch: %w: %s", ns, err, bytes.TrimSpace(out))
	}
	return nil
}

// inNamespace runs a command to its end in a network namespace.
func inNamespace(ns string, args ...string) error {
	return command("nsenter", append([]string{"--net=" + netnsPath(ns)}, args...)...)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func netnsPath(ns string) string { return "/run/netns/" + ns }

// namePrefix begins the names of all namespaces of a run.
const namePrefix = "wb"

// removeLeftovers deletes namespaces of runs that were killed.
func removeLeftovers() {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return // there is none yet
	}
	for _, e := range entries {
		number, _, ok := strings.Cut(strings.TrimPrefix(e.Name(), namePrefix), "-")
		pid, err := strconv.Atoi(number)
		if !ok || err != nil || !strings.HasPrefix(e.Name(), namePrefix) {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); os.IsNotExist(err) {
			_ = ip("netns", "del", e.Name())
		}
	}
}

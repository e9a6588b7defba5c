package test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/weirnet/weir/test/node"
)

// The commands of a script that make nodes, pods, and whom these talk to.

// serve names a place and starts its servers.
func (s *story) serve(name string, p *place) {
	s.t.Helper()
	s.places[name] = p
	for _, port := range []uint16{80, 8080} {
		if err := p.ServeHTTP(port, special); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, port := range []uint16{5432, 7000} {
		if err := p.ServeTCP(port); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, port := range []uint16{53, 7000} {
		if port == 53 && s.noEcho53 {
			continue
		}
		if err := p.ServeUDP(port); err != nil {
			s.t.Fatal(err)
		}
	}
}

// special answers two kinds of requests that probes don't make: ?bytes=N for a
// body of that size, and upgrades to an echo.
func special(w http.ResponseWriter, r *http.Request) bool {
	if n, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64); err == nil {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, zeros{}, n)
		return true
	}
	if r.Header.Get("Upgrade") == "" {
		return false
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
	_, _ = io.Copy(conn, buffered)
	return true
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func (s *story) addNode(name string, flags map[string]string) error {
	o := node.NodeOptions{Name: name, DropInvalid: true}
	for k, v := range flags {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		switch k {
		case "rp_filter":
			o.RPFilter = n
		case "uplink-mtu":
			o.UplinkMTU = n
		case "pod-mtu":
			o.PodMTU = n
		default:
			return fmt.Errorf("a node has no %s", k)
		}
	}
	n, err := s.network.AddNode(o)
	if err != nil {
		return err
	}
	s.nodes = append(s.nodes, n)
	s.serve("host-"+name, &place{Netns: n.Host, addrs: n.Addrs()})
	return s.objects.PutNode(n)
}

// node returns a node by name, the last one for "".
func (s *story) node(name string) (*node.Node, error) {
	if len(s.nodes) == 0 {
		if err := s.addNode("a", nil); err != nil {
			return nil, err
		}
	}
	if name == "" {
		return s.nodes[len(s.nodes)-1], nil
	}
	for _, n := range s.nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("there is no node %s", name)
}

func (s *story) addPod(key string, flags map[string]string, bridged bool) (*place, error) {
	namespace, name, ok := strings.Cut(key, "/")
	if !ok {
		return nil, fmt.Errorf("%s: not namespace/name", key)
	}
	n, err := s.node(flags["on"])
	if err != nil {
		return nil, err
	}
	var labels []string
	address := ""
	for k, v := range flags {
		switch k {
		case "on":
		case "address":
			address = v
		default:
			labels = append(labels, k+"="+v)
		}
	}
	wiring := node.Routed
	if bridged {
		wiring = node.Bridged
	}
	obj := node.PodObject(namespace, name, labels...)
	if address != "" { // that of a pod which was here before
		old, ok := s.places[address]
		if !ok || old.pod == nil {
			return nil, fmt.Errorf("there was no pod %s", address)
		}
		obj.Status.PodIPs = old.pod.Object.Status.PodIPs
	}
	p, err := n.AddPod(obj, wiring)
	if err != nil {
		return nil, err
	}
	s.serve(key, &place{Netns: p.Netns, addrs: p.Addrs, pod: p})
	if _, err := os.Stat(filepath.Join(s.objects.Dir, "namespace-"+namespace+".yaml")); err != nil {
		if err := s.objects.PutNamespace(namespace); err != nil {
			return nil, err
		}
	}
	return s.places[key], s.objects.PutPod(p)
}

func (s *story) deletePod(key string) error {
	p, ok := s.places[key]
	if !ok || p.pod == nil {
		return fmt.Errorf("there is no pod %s", key)
	}
	if err := p.pod.Delete(); err != nil {
		return err
	}
	return s.objects.RemovePod(p.pod)
}

func (s *story) forward(from, to string, masquerade bool) error {
	nodeName, port, _ := strings.Cut(from, ":")
	n, err := s.node(nodeName)
	if err != nil {
		return err
	}
	nodePort, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	podName, port, _ := strings.Cut(to, ":")
	p, ok := s.places[podName]
	if !ok || p.pod == nil {
		return fmt.Errorf("there is no pod %s", podName)
	}
	podPort, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	for i := range 2 {
		at := netip.AddrPortFrom(n.Addrs()[i], uint16(nodePort))
		s.forwards[at], s.masqueraded[at] = netip.AddrPortFrom(p.addrs[i], uint16(podPort)), masquerade
	}
	return n.Forward(context.Background(), "tcp", uint16(nodePort), p.pod, uint16(podPort), masquerade)
}

// addWorld names addresses that the outside has.
func (s *story) addWorld(name string, addrs []string) error {
	p := &place{Netns: s.network.Outside}
	for _, text := range addrs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		// For servers that bind to it.
		if err := p.AddAddress("lo", a); err != nil {
			return err
		}
		p.addrs = append(p.addrs, a)
	}
	s.places[name] = p
	return nil
}

// addLink gives a node addresses on an interface of their own, or takes that away.
func (s *story) addLink(name string, addrs []string, flags map[string]string) error {
	n, err := s.node(flags["on"])
	if err != nil {
		return err
	}
	if addrs[0] == "gone" {
		delete(s.beside, n.Name)
		_, err := n.Host.Run(context.Background(), "", "ip", "link", "del", name)
		return err
	}
	if _, err := n.Host.Run(context.Background(), "", "ip", "link", "add", name, "up", "type", "bridge"); err != nil {
		return err
	}
	p := &place{Netns: n.Host}
	for _, text := range addrs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := n.Host.AddAddress(name, a); err != nil {
			return err
		}
		p.addrs = append(p.addrs, a)
	}
	s.places[name], s.beside[n.Name] = p, p.addrs
	return nil
}

// addService gives pods addresses that nobody has, on every node.
func (s *story) addService(key string, addrs, pods []string, flags map[string]string) error {
	namespace, name, ok := strings.Cut(key, "/")
	if !ok {
		return fmt.Errorf("%s: not namespace/name", key)
	}
	p := &place{Netns: s.network.Outside} // nobody sends from there
	var backends []*node.Pod
	for _, text := range addrs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		p.addrs = append(p.addrs, a)
	}
	for _, pod := range pods {
		b, ok := s.places[pod]
		if !ok || b.pod == nil {
			return fmt.Errorf("there is no pod %s", pod)
		}
		backends = append(backends, b.pod)
	}
	for _, n := range s.nodes {
		if err := n.Service(context.Background(), p.addrs, []string{"TCP", "UDP"}, 53, backends, 53); err != nil {
			return err
		}
	}
	s.places[key] = p
	return s.objects.PutService(namespace, name, flags, p.addrs, 53, backends)
}

// addDNS starts a real server of names; "none": the test has one itself.
func (s *story) addDNS(software, at string, zones []string, flags map[string]string) error {
	p, ok := s.places[at]
	if !ok {
		return fmt.Errorf("there is no place %s", at)
	}
	zone := ""
	for _, z := range zones {
		text, ok := s.files[z]
		if !ok {
			return fmt.Errorf("the story has no file %s", z)
		}
		zone += text
	}
	var forward []netip.Addr
	if to := flags["forward"]; to != "" {
		other, ok := s.places[to]
		if !ok {
			return fmt.Errorf("there is no place %s", to)
		}
		forward = other.addrs
	}
	_, err := s.serveDNS(software, p, zone, forward...)
	return err
}

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Wiring is how a pod is joined to its host.
type Wiring int

const (
	// Routed: /32 and /128 routes to the pod's own veth, as CNI ptp and Calico
	// do.
	Routed Wiring = iota
	// Bridged: the veth is a port of the bridge cni0, as CNI bridge does.
	Bridged
)

func (w Wiring) String() string {
	if w == Bridged {
		return "bridged"
	}
	return "routed"
}

// Pod is a pod of a node: a namespace behind a veth pair.
type Pod struct {
	*Netns
	Namespace, Pod string
	Wiring         Wiring
	Addrs          []netip.Addr // IPv4 first
	HostLink       string       // host side of its veth
	Object         *corev1.Pod  // with nodeName and status filled in

	node *Node
}

// PodObject is a pod as users write it, with these labels ("key=value").
func PodObject(namespace, name string, labels ...string) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "none"}}},
	}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		p.Labels[k] = v
	}
	return p
}

// AddPod makes the pod that obj describes: its namespace, veth, addresses and
// routes. The object is completed (node, status), not written anywhere: see
// Objects. An address in status.podIPs is used, so that a new pod can take the
// address of one that went.
func (n *Node) AddPod(obj *corev1.Pod, wiring Wiring) (_ *Pod, err error) {
	n.mu.Lock()
	n.made++
	number := n.made
	n.mu.Unlock()
	p := &Pod{Namespace: obj.Namespace, Pod: obj.Name, Wiring: wiring, Object: obj.DeepCopy(), node: n}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make pod %s/%s: %w", p.Namespace, p.Pod, err)
			if p.Netns != nil {
				err = errors.Join(err, p.Netns.Close())
			}
		}
	}()
	p.HostLink = fmt.Sprintf("p%d-%s", number, obj.Name)
	p.HostLink = p.HostLink[:min(len(p.HostLink), 15)]
	if p.Addrs, err = n.podAddrs(obj, wiring, number); err != nil {
		return nil, err
	}
	p.complete(number)
	if p.Netns, err = NewNetns(fmt.Sprintf("%s.pod-%s-%s", n.network.Name, obj.Namespace, obj.Name)); err != nil {
		return nil, err
	}
	if err = n.Host.veth(p.HostLink, p.Netns, "eth0", n.PodMTU); err != nil {
		return nil, err
	}
	if wiring == Bridged {
		err = n.wireBridged(p)
	} else {
		err = n.wireRouted(p)
	}
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.pods = append(n.pods, p)
	n.mu.Unlock()
	return p, nil
}

func (n *Node) podAddrs(obj *corev1.Pod, wiring Wiring, number int) ([]netip.Addr, error) {
	if len(obj.Status.PodIPs) > 0 {
		var addrs []netip.Addr
		for _, ip := range obj.Status.PodIPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return nil, err
			}
			addrs = append(addrs, a)
		}
		return addrs, nil
	}
	if number > 120 {
		return nil, errors.New("a node has room for 120 pods")
	}
	last, net6 := 1+number, 1
	if wiring == Bridged {
		last, net6 = 129+number, 2
	}
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 77, byte(n.number), byte(last)}),
		netip.MustParseAddr(fmt.Sprintf("fd77:0:%d:%d::%x", n.number, net6, 1+number)),
	}, nil
}

func (n *Node) wireRouted(p *Pod) error {
	gw := n.routedGateway()
	nodeAddrs := n.Addrs()
	return errors.Join(
		n.Host.address(p.HostLink, host(gw), netip.PrefixFrom(linkLocalGateway, 64)),
		n.Host.route(
			route{to: host(p.Addrs[0]).String(), link: p.HostLink},
			route{to: host(p.Addrs[1]).String(), link: p.HostLink, src: nodeAddrs[1]}),
		p.address("eth0", host(p.Addrs[0]), host(p.Addrs[1])),
		p.route(
			route{to: host(gw).String(), link: "eth0"},
			route{to: "0.0.0.0/0", link: "eth0", via: gw},
			route{to: "::/0", link: "eth0", via: linkLocalGateway}),
	)
}

func (n *Node) wireBridged(p *Pod) error {
	v4, v6 := n.bridgeRange()
	return errors.Join(
		n.Host.enslave(p.HostLink, "cni0"),
		p.address("eth0", netip.PrefixFrom(p.Addrs[0], v4.Bits()), netip.PrefixFrom(p.Addrs[1], v6.Bits())),
		p.route(
			route{to: "0.0.0.0/0", link: "eth0", via: v4.Addr()},
			route{to: "::/0", link: "eth0", via: v6.Addr()}),
	)
}

// complete fills in what a kubelet reports of a running pod.
func (p *Pod) complete(number int) {
	o := p.Object
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	if o.UID == "" {
		o.UID = types.UID(fmt.Sprintf("00000000-0000-0000-%04x-%012x", p.node.number, number))
	}
	if o.CreationTimestamp.IsZero() {
		o.CreationTimestamp = metav1.NewTime(time.Now().Truncate(time.Second))
	}
	o.Spec.NodeName = p.node.Name
	o.Status.Phase = corev1.PodRunning
	o.Status.PodIP, o.Status.PodIPs, o.Status.HostIP = p.Addrs[0].String(), nil, p.node.Addrs()[0].String()
	for _, a := range p.Addrs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
}

// Key is namespace/name.
func (p *Pod) Key() string { return p.Namespace + "/" + p.Pod }

// Node is where the pod runs.
func (p *Pod) Node() *Node { return p.node }

// StartProcess runs a program in the pod until it ends or the pod goes.
func (p *Pod) StartProcess(cmd *exec.Cmd) (*Process, error) {
	return p.node.StartProcessIn(p.Netns, cmd)
}

// Delete removes the pod from the node: its programs are killed first, then
// its links vanish, as a runtime does it. The object is not touched.
func (p *Pod) Delete() error {
	n := p.node
	n.mu.Lock()
	n.pods = slices.DeleteFunc(n.pods, func(q *Pod) bool { return q == p })
	var mine []*Process
	n.processes = slices.DeleteFunc(n.processes, func(q *Process) bool {
		if q.in == p.Netns {
			mine = append(mine, q)
			return true
		}
		return false
	})
	n.mu.Unlock()
	for _, q := range mine {
		q.Stop()
	}
	link, err := n.Host.Link(p.HostLink)
	if err == nil {
		// Sockets of this process may keep the namespace alive for a while; the
		// pair must go now.
		err = n.Host.nl.LinkDel(link)
	}
	return errors.Join(err, p.Netns.Close())
}

// Pods lists the node's pods.
func (n *Node) Pods() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pods)
}

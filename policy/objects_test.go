package policy

import (
	"encoding/json"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weirnet/weir/policy/api"
)

// objects reads a file of YAML into changes that make its objects.
func objects(t testing.TB, yaml string) []Change {
	t.Helper()
	read := api.Read("test.yaml", []byte(yaml))
	for _, err := range read.Errors {
		t.Fatalf("read objects: %v\n%s", err, yaml)
	}
	var out []Change
	for _, p := range read.Policies {
		out = append(out, Change{Object{p.Kind, p.Namespace, p.Name}, p})
	}
	for _, g := range read.CIDRGroups {
		out = append(out, Change{Object{api.KindCiliumCIDRGroup, "", g.Name}, g})
	}
	for i := range read.Others {
		out = append(out, coreObject(t, &read.Others[i]))
	}
	return out
}

func coreObject(t testing.TB, d *api.Document) Change {
	t.Helper()
	text, err := d.JSON()
	if err != nil {
		t.Fatalf("read objects: %v", err)
	}
	into := func(v any) {
		if err := json.Unmarshal(text, v); err != nil {
			t.Fatalf("read a %s: %v", d.Kind, err)
		}
	}
	ns := d.Namespace
	if ns == "" {
		ns = "default"
	}
	switch d.Kind {
	case KindPod:
		var o corev1.Pod
		into(&o)
		p := &Pod{Namespace: ns, Name: o.Name, UID: string(o.UID), Node: o.Spec.NodeName, Labels: o.Labels,
			ServiceAccount: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork}
		for _, ip := range o.Status.PodIPs {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(ip.IP))
		}
		if len(p.Addresses) == 0 && o.Status.PodIP != "" {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(o.Status.PodIP))
		}
		for _, c := range o.Spec.Containers {
			for _, cp := range c.Ports {
				p.Ports = append(p.Ports, NamedPort{cp.Name, protocolOf(t, cp.Protocol), uint16(cp.ContainerPort)})
			}
		}
		return Change{Object{KindPod, ns, o.Name}, p}
	case KindNamespace:
		var o corev1.Namespace
		into(&o)
		return Change{Object{KindNamespace, "", o.Name}, &Namespace{o.Name, o.Labels}}
	case KindNode:
		var o corev1.Node
		into(&o)
		n := &Node{Name: o.Name, Labels: o.Labels}
		for _, a := range o.Status.Addresses {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(a.Address))
		}
		for _, c := range o.Spec.PodCIDRs {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
		}
		return Change{Object{KindNode, "", o.Name}, n}
	case KindService:
		var o corev1.Service
		into(&o)
		s := &Service{Namespace: ns, Name: o.Name, Labels: o.Labels, Selector: o.Spec.Selector}
		for _, ip := range append(o.Spec.ClusterIPs, o.Spec.ClusterIP) {
			if a, err := netip.ParseAddr(ip); err == nil {
				s.ClusterIPs = append(s.ClusterIPs, a)
			}
		}
		for _, ip := range o.Spec.ExternalIPs {
			s.ExternalIPs = append(s.ExternalIPs, netip.MustParseAddr(ip))
		}
		for _, sp := range o.Spec.Ports {
			s.Ports = append(s.Ports, ServicePort{Name: sp.Name, Protocol: protocolOf(t, sp.Protocol), Port: uint16(sp.Port), NodePort: uint16(sp.NodePort),
				TargetPort: uint16(sp.TargetPort.IntVal), TargetName: sp.TargetPort.StrVal})
		}
		return Change{Object{KindService, ns, o.Name}, s}
	case KindEndpointSlice:
		var o discoveryv1.EndpointSlice
		into(&o)
		s := &EndpointSlice{Namespace: ns, Name: o.Name, Service: o.Labels[discoveryv1.LabelServiceName]}
		for _, e := range o.Endpoints {
			for _, a := range e.Addresses {
				s.Addresses = append(s.Addresses, netip.MustParseAddr(a))
			}
		}
		for _, p := range o.Ports {
			sp := SlicePort{Protocol: protoTCP, Port: uint16(*p.Port)}
			if p.Name != nil {
				sp.Name = *p.Name
			}
			if p.Protocol != nil {
				sp.Protocol = protocolOf(t, *p.Protocol)
			}
			s.Ports = append(s.Ports, sp)
		}
		return Change{Object{KindEndpointSlice, ns, o.Name}, s}
	}
	t.Fatalf("no test needs a %s", d.Kind)
	return Change{}
}

func protocolOf(t testing.TB, p corev1.Protocol) uint8 {
	t.Helper()
	switch p {
	case corev1.ProtocolTCP, "":
		return protoTCP
	case corev1.ProtocolUDP:
		return protoUDP
	case corev1.ProtocolSCTP:
		return protoSCTP
	}
	t.Fatalf("protocol %q", p)
	return 0
}

// newEngine makes an engine of a node with objects.
func newEngine(t testing.TB, node string, yaml string) *Engine {
	t.Helper()
	e, err := NewEngine(Options{NodeName: node})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Apply(objects(t, yaml)); err != nil {
		t.Fatal(err)
	}
	return e
}

package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weirnet/weir/policy"
)

// coreKinds tells how objects that are no policies are read. A decoder gets
// the document, the object's key is known already. A nil value means that the
// object counts as absent (a pod that has ended).
var coreKinds = map[typeKey]coreKind{
	{"v1", "Pod"}:                            {true, decodeAs(pod)},
	{"v1", "Namespace"}:                      {false, decodeAs(namespace)},
	{"v1", "Node"}:                           {false, decodeAs(node)},
	{"v1", "Service"}:                        {true, decodeAs(service)},
	{"discovery.k8s.io/v1", "EndpointSlice"}: {true, decodeAs(endpointSlice)},
}

type typeKey struct{ apiVersion, kind string }

type coreKind struct {
	namespaced bool
	decode     func(key policy.Object, text []byte) (any, error)
}

func decodeAs[T any](convert func(policy.Object, *T) (any, error)) func(policy.Object, []byte) (any, error) {
	return func(key policy.Object, text []byte) (any, error) {
		var o T
		if err := json.Unmarshal(text, &o); err != nil {
			return nil, err
		}
		return convert(key, &o)
	}
}

func pod(key policy.Object, o *corev1.Pod) (any, error) {
	if o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return nil, nil // it owns no address any more
	}
	p := &policy.Pod{
		Namespace: key.Namespace, Name: key.Name, UID: string(o.UID),
		Node: o.Spec.NodeName, Labels: o.Labels,
		ServiceAccount: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork,
		Created: o.CreationTimestamp.Unix(), Deleting: o.DeletionTimestamp != nil,
	}
	if static := o.Annotations[corev1.MirrorPodAnnotationKey]; static != "" {
		p.UID = static // by which the node itself knows a static pod
	}
	if o.CreationTimestamp.IsZero() {
		p.Created = 0
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default" // as admission would have filled in
	}
	ips := make([]string, 0, len(o.Status.PodIPs)+1)
	for _, ip := range o.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	ips = append(ips, o.Status.PodIP)
	var err error
	if p.Addresses, err = addresses("status.podIPs", ips); err != nil {
		return nil, err
	}
	containers := slices.Clone(o.Spec.Containers)
	for _, c := range o.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c) // a sidecar: it runs as long as the pod
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if err := addPort(p, port); err != nil {
				return nil, fmt.Errorf("port %q of container %s: %w", port.Name, c.Name, err)
			}
		}
	}
	return p, nil
}

// addPort keeps a container's port if it has a name or is one of the node's, too.
func addPort(p *policy.Pod, port corev1.ContainerPort) error {
	ofNode := port.HostPort != 0 && !p.HostNetwork
	if port.Name == "" && !ofNode {
		return nil
	}
	n, err := portNumber(port.ContainerPort)
	if err != nil {
		return err
	}
	proto, err := protocolNumber(port.Protocol)
	if err != nil {
		return err
	}
	if port.Name != "" {
		p.Ports = append(p.Ports, policy.NamedPort{Name: port.Name, Protocol: proto, Port: n})
	}
	if !ofNode {
		return nil
	}
	hp := policy.HostPort{Port: n, Protocol: proto}
	if hp.HostPort, err = portNumber(port.HostPort); err != nil {
		return fmt.Errorf("hostPort: %w", err)
	}
	if port.HostIP != "" {
		if hp.HostIP, err = netip.ParseAddr(port.HostIP); err != nil {
			return fmt.Errorf("hostIP: %w", err)
		}
	}
	p.HostPorts = append(p.HostPorts, hp)
	return nil
}

func namespace(key policy.Object, o *corev1.Namespace) (any, error) {
	return &policy.Namespace{Name: key.Name, Labels: o.Labels}, nil
}

func node(key policy.Object, o *corev1.Node) (any, error) {
	n := &policy.Node{Name: key.Name, Labels: o.Labels}
	var ips []string
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			ips = append(ips, a.Address)
		}
	}
	var err error
	if n.Addresses, err = addresses("status.addresses", ips); err != nil {
		return nil, err
	}
	cidrs := slices.Clone(o.Spec.PodCIDRs)
	if o.Spec.PodCIDR != "" && !slices.Contains(cidrs, o.Spec.PodCIDR) {
		cidrs = append(cidrs, o.Spec.PodCIDR)
	}
	for _, c := range cidrs {
		pfx, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fmt.Errorf("spec.podCIDRs: %w", err)
		}
		n.PodCIDRs = append(n.PodCIDRs, pfx.Masked())
	}
	return n, nil
}

func service(key policy.Object, o *corev1.Service) (any, error) {
	s := &policy.Service{Namespace: key.Namespace, Name: key.Name, Labels: o.Labels, Selector: o.Spec.Selector}
	cluster := slices.Clone(o.Spec.ClusterIPs)
	cluster = append(cluster, o.Spec.ClusterIP)
	cluster = slices.DeleteFunc(cluster, func(ip string) bool { return ip == corev1.ClusterIPNone })
	external := slices.Clone(o.Spec.ExternalIPs)
	var proxied []string
	for _, in := range o.Status.LoadBalancer.Ingress {
		external = append(external, in.IP)
		if in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy {
			proxied = append(proxied, in.IP)
		}
	}
	var errs [3]error
	s.ClusterIPs, errs[0] = addresses("spec.clusterIPs", cluster)
	s.ExternalIPs, errs[1] = addresses("spec.externalIPs", external)
	s.ProxiedIPs, errs[2] = addresses("status.loadBalancer.ingress", proxied)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if o.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.Affinity = affinityTime(o.Spec.SessionAffinityConfig)
	}
	if local := o.Spec.InternalTrafficPolicy; local != nil && *local == corev1.ServiceInternalTrafficPolicyLocal {
		s.InternalLocal = true
	}
	_, s.OtherProxy = o.Labels[otherProxyLabel]
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		s.ClusterIPs = nil // a name, whatever else is written there
	}
	for i, p := range o.Spec.Ports {
		n, err := portNumber(p.Port)
		if err != nil {
			return nil, fmt.Errorf("spec.ports[%d]: %w", i, err)
		}
		nodePort := uint16(0)
		if p.NodePort != 0 {
			if nodePort, err = portNumber(p.NodePort); err != nil {
				return nil, fmt.Errorf("spec.ports[%d]: nodePort: %w", i, err)
			}
		}
		proto, err := protocolNumber(p.Protocol)
		if err != nil {
			return nil, fmt.Errorf("spec.ports[%d]: %w", i, err)
		}
		port := policy.ServicePort{Name: p.Name, Protocol: proto, Port: n, NodePort: nodePort, TargetName: p.TargetPort.StrVal}
		if p.TargetPort.IntVal != 0 {
			if port.TargetPort, err = portNumber(p.TargetPort.IntVal); err != nil {
				return nil, fmt.Errorf("spec.ports[%d]: targetPort: %w", i, err)
			}
		}
		s.Ports = append(s.Ports, port)
	}
	return s, nil
}

// otherProxyLabel tells kube-proxy to leave a service to somebody else.
const otherProxyLabel = "service.kubernetes.io/service-proxy-name"

// affinityTime is how long clients stay with a backend: three hours if nothing
// is said, as the API fills in.
func affinityTime(c *corev1.SessionAffinityConfig) time.Duration {
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil || *c.ClientIP.TimeoutSeconds <= 0 {
		return time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
	}
	return time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
}

func endpointSlice(key policy.Object, o *discoveryv1.EndpointSlice) (any, error) {
	s := &policy.EndpointSlice{Namespace: key.Namespace, Name: key.Name, Service: o.Labels[discoveryv1.LabelServiceName]}
	if o.AddressType != discoveryv1.AddressTypeFQDN {
		var ips []string
		for _, e := range o.Endpoints {
			if !serves(e.Conditions) {
				continue
			}
			ips = append(ips, e.Addresses...)
			at, err := addresses("endpoints", e.Addresses)
			if err != nil {
				return nil, err
			}
			node := ""
			if e.NodeName != nil {
				node = *e.NodeName
			}
			for _, a := range at {
				s.Backends = append(s.Backends, policy.SliceBackend{Addr: a, Node: node, Terminating: !ready(e.Conditions)})
			}
		}
		var err error
		if s.Addresses, err = addresses("endpoints", ips); err != nil {
			return nil, err
		}
	}
	for i, p := range o.Ports {
		out := policy.SlicePort{}
		if p.Name != nil {
			out.Name = *p.Name
		}
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		var err error
		if out.Protocol, err = protocolNumber(proto); err != nil {
			return nil, fmt.Errorf("ports[%d]: %w", i, err)
		}
		if p.Port != nil { // nil: every port
			if out.Port, err = portNumber(*p.Port); err != nil {
				return nil, fmt.Errorf("ports[%d]: %w", i, err)
			}
		}
		s.Ports = append(s.Ports, out)
	}
	return s, nil
}

// ready tells whether an endpoint takes whoever comes. What is not said counts
// as yes. Whether it serves doesn't matter: with publishNotReadyAddresses an
// endpoint is ready that does not.
func ready(c discoveryv1.EndpointConditions) bool { return c.Ready == nil || *c.Ready }

// serves tells whether an endpoint may get traffic: ready, or still serving
// while it terminates.
func serves(c discoveryv1.EndpointConditions) bool {
	return ready(c) || c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating
}

// addresses parses without empty ones and repeats.
func addresses(field string, texts []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range texts {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		if a.Zone() != "" {
			return nil, fmt.Errorf("%s: %q has a zone", field, s)
		}
		if a = a.Unmap(); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

func portNumber(n int32) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %d is not between 1 and 65535", n)
	}
	return uint16(n), nil
}

func protocolNumber(p corev1.Protocol) (uint8, error) {
	switch p {
	case corev1.ProtocolTCP, "":
		return 6, nil
	case corev1.ProtocolUDP:
		return 17, nil
	case corev1.ProtocolSCTP:
		return 132, nil
	}
	return 0, fmt.Errorf("unknown protocol %q", p)
}

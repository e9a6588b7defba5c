package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Objects is a directory of Kubernetes YAML that an agent follows, one file
// per object. Files appear and change at once, never in part.
type Objects struct{ Dir string }

// Write puts text into a file of that name (.yaml is added where it is
// missing).
func (o Objects) Write(name, text string) error {
	path := o.path(name)
	temporary, err := os.CreateTemp(o.Dir, ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = temporary.WriteString(text)
	err = errors.Join(err, temporary.Chmod(0o644), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Remove deletes a file; one that is not there is no error.
func (o Objects) Remove(name string) error {
	if err := os.Remove(o.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove object file: %w", err)
	}
	return nil
}

func (o Objects) path(name string) string {
	if !strings.HasSuffix(name, ".yaml") && !strings.HasSuffix(name, ".yml") {
		name += ".yaml"
	}
	return filepath.Join(o.Dir, name)
}

// Put writes an object as YAML.
func (o Objects) Put(name string, object any) error {
	text, err := yaml.Marshal(object)
	if err != nil {
		return fmt.Errorf("write object %s: %w", name, err)
	}
	return o.Write(name, string(text))
}

// PutPod writes a pod's object as it runs.
func (o Objects) PutPod(p *Pod) error { return o.Put(podFile(p.Namespace, p.Pod), p.Object) }

// RemovePod removes a pod's object.
func (o Objects) RemovePod(p *Pod) error { return o.Remove(podFile(p.Namespace, p.Pod)) }

func podFile(namespace, name string) string { return "pod-" + namespace + "-" + name + ".yaml" }

// PutNamespace writes a namespace with these labels ("key=value"), and the
// name's own label.
func (o Objects) PutNamespace(name string, labels ...string) error {
	ns := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}},
	}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		ns.Labels[k] = v
	}
	return o.Put("namespace-"+name, ns)
}

// PutNode writes a node's object.
func (o Objects) PutNode(n *Node) error {
	obj := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}},
	}
	for _, c := range n.PodCIDRs() {
		obj.Spec.PodCIDRs = append(obj.Spec.PodCIDRs, c.String())
	}
	obj.Spec.PodCIDR = obj.Spec.PodCIDRs[0]
	for _, a := range n.Addrs() {
		obj.Status.Addresses = append(obj.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return o.Put("node-"+n.Name, obj)
}

// PutService writes a service of pods, for TCP and UDP, and what is behind it.
func (o Objects) PutService(namespace, name string, labels map[string]string, clusterIPs []netip.Addr, port uint16, backends []*Pod) error {
	svc := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
	}
	var ports []discoveryv1.EndpointPort
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		number, key := int32(port), strings.ToLower(string(p))
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: key, Protocol: p, Port: number})
		ports = append(ports, discoveryv1.EndpointPort{Name: &key, Protocol: &p, Port: &number})
	}
	for _, a := range clusterIPs {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, a.String())
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	err := o.Put("service-"+namespace+"-"+name, svc)
	for i, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: name + "-" + strings.ToLower(string(kind)), Labels: map[string]string{discoveryv1.LabelServiceName: name},
			},
			AddressType: kind, Ports: ports,
		}
		for _, b := range backends {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{b.Addrs[i].String()}, NodeName: &b.node.Name,
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: b.Namespace, Name: b.Pod},
			})
		}
		err = errors.Join(err, o.Put("slice-"+namespace+"-"+slice.Name, slice))
	}
	return err
}

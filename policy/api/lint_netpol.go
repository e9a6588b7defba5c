package api

import (
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/identity"
)

func (l *linter) networkPolicy(s *networkingv1.NetworkPolicySpec) {
	if !l.d.has("spec.podSelector") {
		l.warn("spec", "has no podSelector: it selects every pod of the namespace")
	}
	l.podLabels(&s.PodSelector, "spec.podSelector", "a policy selects pods of its own namespace anyway")
	for _, p := range l.d.nullPaths {
		if strings.HasSuffix(p, ".from") || strings.HasSuffix(p, ".to") || strings.HasSuffix(p, ".ports") || strings.HasSuffix(p, "Selector") {
			l.warn(p, "is null, which is the same as not written: it selects everything")
		}
	}
	if len(s.Ingress) > 0 && !slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeIngress) {
		l.warn("spec.ingress", "does not count: policyTypes lacks Ingress")
	}
	if len(s.Egress) > 0 && !slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeEgress) {
		l.warn("spec.egress", "does not count: policyTypes lacks Egress")
	}
	for i, r := range s.Ingress {
		l.networkPeers(r.From, index("spec.ingress", i)+".from")
	}
	for i, r := range s.Egress {
		l.networkPeers(r.To, index("spec.egress", i)+".to")
	}
}

func (l *linter) networkPeers(peers []networkingv1.NetworkPolicyPeer, path string) {
	for i, p := range peers {
		at := index(path, i)
		if p.PodSelector != nil {
			l.podLabels(p.PodSelector, at+".podSelector", "write a namespaceSelector with "+identity.KeyMetadataName)
		}
		if p.NamespaceSelector != nil {
			l.namespaceLabels(p.NamespaceSelector, at+".namespaceSelector")
		}
		if p.IPBlock == nil {
			continue
		}
		b := at + ".ipBlock"
		l.cidr(CIDR(p.IPBlock.CIDR), b+".cidr")
		for j, e := range p.IPBlock.Except {
			l.cidr(CIDR(e), index(b+".except", j))
		}
	}
}

// podLabels warns of a key that is one of every pod's to Cilium, and to us,
// but not in the API that the policy is of.
func (l *linter) podLabels(s *metav1.LabelSelector, path, instead string) {
	for _, at := range keyPaths(s, path, namespaceLabel) {
		l.warn(at, "%s is no label that pods have in the Kubernetes API: %s", namespaceLabel, instead)
	}
}

// namespaceLabels warns of the key that is for pods.
func (l *linter) namespaceLabels(s *metav1.LabelSelector, path string) {
	for _, at := range keyPaths(s, path, namespaceLabel) {
		l.warn(at, "%s is no label that namespaces have: write %s", namespaceLabel, identity.KeyMetadataName)
	}
}

// keyPaths are the places where a selector asks for a key.
func keyPaths(s *metav1.LabelSelector, path, key string) []string {
	var out []string
	if _, ok := s.MatchLabels[key]; ok {
		out = append(out, entry(path+".matchLabels", key))
	}
	for i, e := range s.MatchExpressions {
		if e.Key == key {
			out = append(out, index(path+".matchExpressions", i)+".key")
		}
	}
	return out
}

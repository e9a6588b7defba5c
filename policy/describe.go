package policy

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/api"
)

// describe spells a selector for people: "app=web,tier in (a,b)", or "(all)".
func describe(s *api.EndpointSelector) string {
	var parts []string
	for _, r := range s.Requirements("") {
		key := r.Key
		if r.Source != "" {
			key = r.Source + ":" + key
		}
		switch r.Operator {
		case api.In:
			if len(r.Values) == 1 {
				parts = append(parts, key+"="+r.Values[0])
			} else {
				parts = append(parts, key+" in ("+strings.Join(r.Values, ",")+")")
			}
		case api.NotIn:
			parts = append(parts, key+" not in ("+strings.Join(r.Values, ",")+")")
		case api.Exists:
			parts = append(parts, key)
		default:
			parts = append(parts, "!"+key)
		}
	}
	if len(parts) == 0 {
		return "(all)"
	}
	return strings.Join(parts, ",")
}

func describeLabels(s *metav1.LabelSelector) string { return describe(endpointSelector(s)) }

// IdentityLabels spells the labels of an identity; nil if it is not known.
func (e *Engine) IdentityLabels(id identity.ID) []string {
	p, ok := e.peers.byID[id]
	switch {
	case !ok && id == identity.Host: // all addresses of this node are in IP blocks
		return newHostPeer(e.apiServerHere).labels.Strings()
	case !ok:
		return nil
	case p.kind == servicePeer:
		return []string{"service:" + p.service.Namespace + "/" + p.service.Name}
	case p.kind == unknownPeer:
		return append([]string{"reserved:unknown-pod"}, p.blockLabels()...)
	case p.kind == namesPeer:
		out := make([]string, len(p.fqdns))
		for i, s := range p.fqdns {
			out[i] = "fqdn:" + s.String()
		}
		return out
	case p.kind == pairPeer:
		return append(e.IdentityLabels(p.pair.outside.id), e.IdentityLabels(p.pair.named.id)...)
	}
	return append(p.labels.Strings(), p.blockLabels()...)
}

// blockLabels spell the IP blocks as labels are spelled.
func (p *peer) blockLabels() []string {
	out := make([]string, len(p.blocks))
	for i, b := range p.blocks {
		out[i] = "block:" + b
	}
	return out
}

package policy

import (
	"fmt"
	"slices"

	"github.com/weirnet/weir/identity"
)

// HostPolicy is what is enforced on this node itself, beside its pods.
type HostPolicy struct {
	// Policy, a key of Delta.Policies; 0: no policy selects the node, and nothing
	// is enforced on it.
	Policy uint32
	// Always is another one, which is asked first: what it allows passes. It has
	// nothing but such entries.
	Always uint32
	// Failsafe is what of it is so by Options.Failsafe, for people.
	Failsafe []string
}

// hostPolicy is that as the engine keeps it.
type hostPolicy struct {
	subject *subject // nil: no policy selects the node
	always  uint32
	passing map[Key]Entry // of it
	// resolvers are the node's; each of claimed has an identity of its own, to be
	// told from its neighbors.
	resolvers, claimed []Server
	told               HostPolicy
}

// nodeSubject is a node as the subject of policies: all its labels count, as
// labels of Kubernetes.
func (e *Engine) nodeSubject(name string) *peer {
	labels := append(identity.Reserved(identity.ReservedHost),
		identity.Label{Source: identity.SourceK8s, Key: identity.KeyCluster, Value: identity.ClusterName})
	if n := e.nodes[name]; n != nil {
		for k, v := range n.Labels {
			labels = append(labels, identity.Label{Source: identity.SourceK8s, Key: k, Value: v})
		}
	}
	return &peer{kind: hostPeer, id: identity.Host, fixed: true, labels: identity.NewLabels(labels...),
		digest: identity.DigestOf([]byte("policy of node\x00" + name))}
}

// selectsNode tells whether some policy selects a node.
func (e *Engine) selectsNode(n *peer) bool {
	return slices.ContainsFunc(e.scoped[""], func(p *policyObject) bool {
		return slices.ContainsFunc(p.rules, func(r *rule) bool { return r.selects(n) })
	})
}

// settleNode makes this node a subject if policies select it. It comes after
// the policies, and before subjects follow them.
func (e *Engine) settleNode() error {
	if e.nodeName == "" {
		return nil
	}
	want := e.nodeSubject(e.nodeName)
	selected, s := e.selectsNode(want), e.host.subject
	e.claimResolvers(selected)
	if !selected {
		e.dropSubject(s)
		e.host.subject = nil
		return nil
	}
	if s == nil {
		var err error
		if e.host.subject, err = e.subjectOf(want); err != nil {
			return fmt.Errorf("policy of the node: %w", err)
		}
		return nil
	}
	if slices.Equal(s.peer.labels, want.labels) {
		return nil
	}
	s.peer = want
	if s.resolved == nil {
		return nil
	}
	change := &policyChange{news: e.scoped[""]}
	for _, f := range s.directions {
		f.subject = want
		for _, c := range f.list {
			if !slices.Contains(change.olds, c.policy) {
				change.olds = append(change.olds, c.policy)
			}
		}
	}
	e.dirty.subjects[s] = change
	return nil
}

func (e *Engine) claimResolvers(selected bool) {
	var now []Server
	if selected {
		now = e.host.resolvers
	}
	if slices.Equal(now, e.host.claimed) {
		return
	}
	for _, s := range now {
		e.claims.cidr(hostPrefix(s.Addr.Addr()), true)
	}
	for _, s := range e.host.claimed {
		e.claims.cidr(hostPrefix(s.Addr.Addr()), false)
	}
	e.host.claimed = now
}

// settleHostPolicy tells what is enforced on the node, if that is new.
func (e *Engine) settleHostPolicy() error {
	if err := e.settlePassages(); err != nil {
		return err
	}
	now := HostPolicy{Always: e.host.always}
	if s := e.host.subject; s != nil {
		now.Policy = s.id
		for _, f := range e.failsafe {
			if !f.ControlPlane || e.isControlPlane(e.nodeName) {
				now.Failsafe = append(now.Failsafe, f.String())
			}
		}
	}
	if t := e.host.told; t.Policy != now.Policy || t.Always != now.Always || !slices.Equal(t.Failsafe, now.Failsafe) {
		e.host.told, e.delta.Host = now, &now
	}
	return nil
}

// nodeAt is the node that an end of a flow is. ok is false for what is no node,
// and for one that is only a peer: where Options.NodeName says what this node is,
// others' own policies are not asked.
func (x *explanation) nodeAt(at, other end) (name string, ok bool) {
	switch {
	case !at.isNode:
		return "", false
	case at.node == "" && x.engine.nodeName != "":
		return x.engine.nodeName, true
	case at.node == "":
		return other.node, true
	}
	return at.node, x.engine.nodeName == "" || at.node == x.engine.nodeName || at.node == other.node
}

// nodeSide says what a node's own policies make of a flow.
func (x *explanation) nodeSide(name string, at, other end, d Direction, port uint16) (*Side, error) {
	e := x.engine
	if other.isNode && (other.node == name || other.node == "") {
		return &Side{Verdict: Allowed, Reason: "what a node sends to itself is not judged"}, nil
	}
	subject := e.nodeSubject(name)
	if !e.selectsNode(subject) {
		return &Side{Verdict: Allowed, Reason: "not enforced: no policy selects the node"}, nil
	}
	at.pod = subject
	if at.name == "" || at.node == "" {
		at.name = "node " + name
	}
	f, err := e.asked(at, d)
	if err != nil {
		return nil, err
	}
	p := e.seenFrom(other, name)
	if other.names != nil && d == Egress {
		p = newPairPeer(pairKey{p, other.names})
	}
	if f.enforced {
		for _, pass := range e.passages(name) {
			if pass.direction == d && pass.concerns(p) && slices.ContainsFunc(pass.ports, func(q ports) bool { return q.contains(x.proto, port) }) {
				return &Side{Verdict: Allowed, Reason: pass.why}, nil
			}
		}
	}
	return x.side(f, at, other, p, port)
}

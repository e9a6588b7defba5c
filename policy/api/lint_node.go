package api

// node warns of what a rule for nodes can't do that one for pods can: nothing of
// theirs goes through the proxy.
func (l *linter) node(r *Rule, path string) {
	for i := range r.Egress {
		e, p := &r.Egress[i], index(path+".egress", i)
		if len(e.ToFQDNs) > 0 {
			l.warn(p+".toFQDNs", "stands for what DNS told pods only: what the node itself asks is not seen")
		}
		for j := range e.ToPorts {
			if rules := e.ToPorts[j].Rules; rules != nil && len(rules.DNS) > 0 {
				l.unenforced(index(p+".toPorts", j)+".rules.dns", "what a node asks is not seen, so the traffic is denied")
			}
		}
	}
}

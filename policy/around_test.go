package policy

import (
	"slices"
	"testing"
)

// TestWhoseRulesCount: a policy without default deny is named as well, but the
// subject stays open until another policy closes it.
func TestWhoseRulesCount(t *testing.T) {
	open := policyYAML("cnp: enableDefaultDeny: {ingress: false}, ingress: [{fromEntities: [world], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]")
	e, tb := applied(t, Options{NodeName: "n1"}, world+"---\n"+open)
	of := func(tb *tables) *Resolved {
		t.Helper()
		for _, ep := range tb.endpoints {
			if r := tb.policies[ep.Policy]; ep.Name == "web" {
				return r
			}
		}
		t.Fatal("no pod web")
		return nil
	}
	name := []string{"CiliumNetworkPolicy default/p0"}
	r := of(tb)
	if !r.Open[Ingress] || len(r.Selecting[Ingress]) != 0 || !slices.Equal(r.Adding[Ingress], name) || len(r.Adding[Egress]) != 0 || r.Open[Egress] {
		t.Errorf("open %v, selecting %v, adding %v", r.Open, r.Selecting, r.Adding)
	}
	closed := policyYAML("cnp: ingress: [{fromEntities: [world], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]")
	step(t, e, tb, objects(t, closed)...)
	r = of(tb)
	if r.Open[Ingress] || !slices.Equal(r.Selecting[Ingress], name) || len(r.Adding[Ingress]) != 0 {
		t.Errorf("open %v, selecting %v, adding %v", r.Open, r.Selecting, r.Adding)
	}
}

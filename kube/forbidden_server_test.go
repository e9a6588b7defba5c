package kube

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/weirnet/weir/policy/api"
)

// TestForbiddenPoliciesAtAServer: what an agent makes of a ClusterRole that lacks a
// kind of policies, or all of Cilium's, with and without their CRDs.
func TestForbiddenPoliciesAtAServer(t *testing.T) {
	c := serve(t)
	c.apply(shopYAML, realPod("a", "10.0.0.1"), policyYAML)
	lacking := func(plurals ...string) []rbacv1.PolicyRule {
		rules := Rules()
		for i := range rules {
			rules[i].Resources = slices.DeleteFunc(slices.Clone(rules[i].Resources), func(r string) bool { return slices.Contains(plurals, r) })
		}
		return slices.DeleteFunc(rules, func(r rbacv1.PolicyRule) bool { return len(r.Resources) == 0 })
	}
	ciliums := []string{"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups"}
	for _, x := range []struct {
		name    string
		lacking []string
		kinds   []string // left out
		crds    bool
	}{
		{"np", []string{"networkpolicies"}, []string{api.KindNetworkPolicy}, false},
		{"none", nil, nil, false},
		// A server does not tell who may not ask that there is no such kind.
		{"no-crds", ciliums, []string{api.KindCiliumPolicy, api.KindClusterwide, api.KindCiliumCIDRGroup}, false},
		{"cnp", ciliums[:1], []string{api.KindCiliumPolicy}, true},
		{"all-ciliums", ciliums, []string{api.KindCiliumPolicy, api.KindClusterwide, api.KindCiliumCIDRGroup}, true},
	} {
		if x.crds {
			c.apply(allCRDs())
			c.run(c.config())
			c.eventually("CRDs are served", func() bool { return c.watch(api.KindCiliumCIDRGroup).Known && c.watch(api.KindCiliumPolicy).Known })
			c.apply(strictYAML)
		}
		stop := c.run(c.account("lacks-"+x.name, lacking(x.lacking...)))
		// A new role is in force a moment later; until then more is denied.
		c.eventually(x.name+": only that is denied", func() bool {
			for _, w := range c.source.Report().Watches {
				if w.Denied != slices.Contains(x.kinds, w.Kind) || !w.Denied && !w.read() {
					return false
				}
			}
			return true
		})
		if len(x.kinds) > 0 && c.sink.called() > 0 {
			t.Errorf("%s: handed on before it is known what is in force: %s", x.name, c.sink.names())
		}
		c.source.Continue(filepath.Join(t.TempDir(), "kinds"), false)
		c.eventually(x.name+": others are handed on", func() bool { return c.has("Pod shop/a") })
		r := c.source.Report()
		lags := strings.Join(r.Lags(), "\n")
		for _, kind := range x.kinds {
			if !c.watch(kind).LeftOut {
				t.Errorf("%s: %+v", x.name, c.watch(kind))
			}
		}
		for _, plural := range x.lacking {
			if !strings.Contains(lags, `the agent's ClusterRole lacks apiGroups: [`) || !strings.Contains(lags, `resources: ["`+plural+`"], verbs: ["list"]`) {
				t.Errorf("%s: it is told\n%s", x.name, lags)
			}
		}
		hasNP, hasCNP := c.has("NetworkPolicy shop/web"), c.has("CiliumNetworkPolicy shop/web")
		if !r.Complete || hasNP == slices.Contains(x.kinds, api.KindNetworkPolicy) || hasCNP != (x.crds && !slices.Contains(x.kinds, api.KindCiliumPolicy)) {
			t.Errorf("%s: %s; %+v", x.name, c.sink.names(), r)
		}
		if len(x.kinds) == 0 && (!strings.HasSuffix(r.From(), ", synced") || !strings.Contains(lags, "the CRD is not installed")) {
			t.Errorf("without CRDs: %s\n%s", r.From(), lags)
		}
		// The rule comes, and with it what was left out.
		if x.name == "cnp" {
			c.account("lacks-"+x.name, Rules())
			c.eventually("the rule is noticed", func() bool {
				return c.has("CiliumNetworkPolicy shop/web") && !c.watch(api.KindCiliumPolicy).LeftOut && c.source.Report().Complete
			})
		}
		stop()
	}
}

package endpoint

import (
	"slices"
	"testing"

	"github.com/weirnet/weir/policy"
)

func TestHolds(t *testing.T) {
	r := &policy.Resolved{
		Enforced:  [2]bool{policy.Ingress: true, policy.Egress: true},
		Open:      [2]bool{policy.Egress: true},
		Selecting: [2][]string{policy.Ingress: {"a"}},
		Adding:    [2][]string{policy.Ingress: {"b"}, policy.Egress: {"c"}},
	}
	if deny, names := holds(r, policy.Ingress); !deny || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("ingress: %v, %v", deny, names)
	}
	if deny, names := holds(r, policy.Egress); deny || !slices.Equal(names, []string{"c"}) {
		t.Errorf("egress: %v, %v", deny, names)
	}
	if deny, names := holds(&policy.Resolved{}, policy.Egress); deny || len(names) != 0 {
		t.Errorf("nothing: %v, %v", deny, names)
	}
}

package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/policy/api"
)

// TestVerdict: what is said of policies, in the words people read.
func TestVerdict(t *testing.T) {
	const head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: t, namespace: default, uid: u}\n"
	kafka := "toPorts: [{ports: [{port: '9092', protocol: TCP}], rules: {kafka: [{}]}}]"
	for _, tt := range []struct{ name, text, conditions, notes string }{
		{"fine", head + "spec: {endpointSelector: {}, ingress: [{}]}", "Valid True Accepted: accepted", ""},
		{
			"refused", head + "spec: {endpointSelector: {}, ingress: [{x: 1}]}",
			"Valid False Refused: refused, and everything it selects is closed in the directions it speaks of: spec.ingress[0].x: unknown field",
			"true Refused: everything it selects is closed in the directions it speaks of: spec.ingress[0].x: unknown field",
		},
		{
			"refused, closes nothing", head + "spec: {endpointSelector: {}, enableDefaultDeny: {ingress: false}, ingress: [{x: 1}]}",
			"Valid False Refused: refused, and it counts for nothing: spec.ingress[0].x: unknown field",
			"true Refused: it counts for nothing: spec.ingress[0].x: unknown field",
		},
		{
			"a part is not enforced", head + "spec: {endpointSelector: {}, ingress: [{" + kafka + "}]}",
			"Valid True Accepted: accepted\nEnforced False NotEnforced: spec.ingress[0].toPorts[0].rules.kafka: is not enforced by this version: the traffic is denied",
			"true NotEnforced: spec.ingress[0].toPorts[0].rules.kafka: is not enforced by this version: the traffic is denied",
		},
		{
			"doubtful", head + "spec: {endpointSelector: {}, ingress: [{fromCIDR: [10.0.0.1/8]}]}",
			"Valid True Doubtful: accepted, but maybe not what was meant: spec.ingress[0].fromCIDR[0]: 10.0.0.1/8 has bits set behind the prefix, which don't count: 10.0.0.0/8 is meant",
			"true Doubtful: spec.ingress[0].fromCIDR[0]: 10.0.0.1/8 has bits set behind the prefix, which don't count: 10.0.0.0/8 is meant",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, ok := verdictOf(api.Read("f", []byte(tt.text)).Policies[0])
			if !ok || v.uid != "u" {
				t.Fatalf("%+v %v", v, ok)
			}
			var conditions, notes []string
			for _, c := range v.conditions() {
				conditions = append(conditions, fmt.Sprintf("%s %s %s: %s", c.Type, c.Status, c.Reason, c.Message))
			}
			for _, n := range v.notes(false) {
				notes = append(notes, fmt.Sprintf("%v %s: %s", n.warning, n.reason, n.text))
			}
			if got := strings.Join(conditions, "\n"); got != tt.conditions {
				t.Errorf("conditions\n%s\nwant\n%s", got, tt.conditions)
			}
			if got := strings.Join(notes, "\n"); got != tt.notes {
				t.Errorf("events\n%s\nwant\n%s", got, tt.notes)
			}
			if better := v.notes(true); len(v.refused) == 0 && (better[0].warning || better[0].reason != reasonAccepted) {
				t.Errorf("%+v after it was refused", better)
			}
		})
	}
}

// TestListed: a policy with very many problems makes no endless text.
func TestListed(t *testing.T) {
	var many []string
	for i := range 25 {
		many = append(many, fmt.Sprintf("%d", i))
	}
	if got := listed(many); !strings.HasSuffix(got, "; 9; and 15 more") {
		t.Error(got)
	}
	for n := range 20 {
		if got := cut(strings.Repeat("ä", 20), n+3); len(got) > n+3 || !utf8.ValidString(got) || !strings.HasSuffix(got, "...") {
			t.Errorf("cut to %d: %q", n+3, got)
		}
	}
}

// TestStamped: a condition that still holds, holds since it did.
func TestStamped(t *testing.T) {
	then, now := metav1.NewTime(time.Unix(1, 0)), metav1.NewTime(time.Unix(2, 0))
	have := []api.Condition{{Type: api.ConditionValid, Status: metav1.ConditionTrue, Message: "old", LastTransitionTime: then}}
	for status, want := range map[metav1.ConditionStatus]metav1.Time{metav1.ConditionTrue: then, metav1.ConditionFalse: now} {
		got := stamped([]api.Condition{{Type: api.ConditionValid, Status: status, Message: "new"}}, have, now)
		if !got[0].LastTransitionTime.Equal(&want) {
			t.Errorf("%s: %v", status, got)
		}
		if sameConditions(got, have) {
			t.Errorf("%v is the same as %v", got, have)
		}
	}
	if !sameConditions(have, stamped([]api.Condition{{Type: api.ConditionValid, Status: metav1.ConditionTrue, Message: "old"}}, nil, now)) {
		t.Error("times count")
	}
}

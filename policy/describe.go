package policy

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

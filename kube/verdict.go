package kube

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/policy/api"
)

// Reasons of conditions and events.
const (
	reasonAccepted    = "Accepted"
	reasonRefused     = "Refused"
	reasonNotEnforced = "NotEnforced"
	reasonDoubtful    = "Doubtful"
)

// mostNamed is how many problems of an object are told; the rest is counted.
const mostNamed = 10

// verdict is what people are told of a policy or a group of addresses.
type verdict struct {
	uid string
	// refused tells why it is closed instead of enforced, unenforced what is
	// accepted and not done, doubtful what may not mean what was meant.
	refused, unenforced, doubtful []string
	// closes is what being refused means.
	closes string
}

// verdictOf judges a value of policy.Change; ok is false for what has none.
func verdictOf(value any) (v verdict, ok bool) {
	var refused, warnings []*api.Error
	switch o := value.(type) {
	case *api.Policy:
		v.uid, refused, warnings = o.UID, o.Refused, o.Warnings
		if v.closes = "everything it selects is closed in the directions it speaks of"; len(o.Closed) == 0 {
			v.closes = "it counts for nothing"
		}
	case *api.CIDRGroup:
		v.uid, refused, warnings = o.UID, o.Refused, o.Warnings
		v.closes = "it has no addresses"
	default:
		return v, false
	}
	for _, e := range refused {
		v.refused = append(v.refused, inWords(e))
	}
	for _, e := range warnings {
		if e.NotEnforced {
			v.unenforced = append(v.unenforced, inWords(e))
		} else {
			v.doubtful = append(v.doubtful, inWords(e))
		}
	}
	return v, true
}

// inWords is an error without a place in a file, which the reader does not have.
func inWords(e *api.Error) string {
	return (&api.Error{Field: e.Field, Message: e.Message}).Error()
}

// conditions are those of a policy, less the times.
func (v verdict) conditions() []api.Condition {
	if len(v.refused) > 0 {
		return []api.Condition{{
			Type: api.ConditionValid, Status: metav1.ConditionFalse, Reason: reasonRefused,
			Message: "refused, and " + v.closes + ": " + listed(v.refused),
		}}
	}
	valid := api.Condition{Type: api.ConditionValid, Status: metav1.ConditionTrue, Reason: reasonAccepted, Message: "accepted"}
	if len(v.doubtful) > 0 {
		valid.Reason = reasonDoubtful
		valid.Message = "accepted, but maybe not what was meant: " + listed(v.doubtful)
	}
	out := []api.Condition{valid}
	if len(v.unenforced) > 0 {
		out = append(out, api.Condition{
			Type: api.ConditionEnforced, Status: metav1.ConditionFalse, Reason: reasonNotEnforced, Message: listed(v.unenforced),
		})
	}
	return out
}

// note is an event to tell.
type note struct {
	warning      bool
	reason, text string
}

// notes are the events for a verdict that is new. Nothing is told of what is
// fine, but that it has become so.
func (v verdict) notes(wasRefused bool) []note {
	if len(v.refused) > 0 {
		return []note{{true, reasonRefused, v.closes + ": " + listed(v.refused)}}
	}
	var out []note
	if wasRefused {
		out = append(out, note{false, reasonAccepted, "it is enforced as written, and no longer refused"})
		if len(v.unenforced) > 0 {
			out[0].text = "it is no longer refused"
		}
	}
	if len(v.unenforced) > 0 {
		out = append(out, note{true, reasonNotEnforced, listed(v.unenforced)})
	}
	if len(v.doubtful) > 0 {
		out = append(out, note{true, reasonDoubtful, listed(v.doubtful)})
	}
	return out
}

// listed joins problems to a sentence of bounded length.
func listed(problems []string) string {
	more := ""
	if n := len(problems); n > mostNamed {
		problems, more = problems[:mostNamed], fmt.Sprintf("; and %d more", n-mostNamed)
	}
	return cut(strings.Join(problems, "; "), 4000) + more
}

// cut shortens a text to at most n bytes, not within a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}

// stamped gives conditions their times: those of the ones that are there
// already, where they hold since.
func stamped(want, have []api.Condition, now metav1.Time) []api.Condition {
	for i := range want {
		want[i].LastTransitionTime = now
		for _, h := range have {
			if h.Type == want[i].Type && h.Status == want[i].Status && !h.LastTransitionTime.IsZero() {
				want[i].LastTransitionTime = h.LastTransitionTime
			}
		}
	}
	return want
}

// sameConditions tells whether two lists say the same, whatever their times.
func sameConditions(a, b []api.Condition) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		found := false
		for _, y := range b {
			found = found || x.Type == y.Type && x.Status == y.Status && x.Reason == y.Reason && x.Message == y.Message
		}
		if !found {
			return false
		}
	}
	return true
}

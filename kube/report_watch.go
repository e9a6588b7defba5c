package kube

import (
	"cmp"
	"strings"
	"time"
)

// Watch tells how a source that is asked for objects kind by kind stands.
type Watch struct {
	Kind string `json:"kind"`
	// Known: all objects were read once. Missing: there is no such kind in the
	// cluster, which is as good. LeftOut: it can't be read, and as nothing of it is
	// in force here all else is enforced without it. None: nothing can be
	// enforced yet.
	Known   bool `json:"known"`
	Missing bool `json:"missing,omitempty"`
	LeftOut bool `json:"leftOut,omitempty"`
	// Since is when what is held stopped to be followed, with the Error that is
	// in the way: what was read before stays in force. Zero: it is up to date.
	Since time.Time `json:"since,omitzero"`
	Error string    `json:"error,omitempty"`
	// Denied: the error is a right that the agent lacks.
	Denied bool `json:"denied,omitempty"`
	// Restarts counts how often a watch was begun again, Relists how often
	// everything was read again.
	Restarts uint64 `json:"restarts"`
	Relists  uint64 `json:"relists"`
	// Heard is when the API server last sent anything.
	Heard time.Time `json:"heard,omitzero"`
}

// read tells whether it is known what there is of the kind.
func (w *Watch) read() bool { return w.Known || w.Missing }

// Lags says in words, one line each, which kinds are not followed and why.
func (r Report) Lags() []string {
	var order []string
	kinds := map[string][]string{}
	for _, w := range r.Watches {
		if how := w.how(); how != "" {
			if kinds[how] == nil {
				order = append(order, how)
			}
			kinds[how] = append(kinds[how], w.Kind)
		}
	}
	for i, how := range order {
		order[i] = strings.Join(kinds[how], ", ") + ": " + how
	}
	return order
}

// String is Lags for one kind, which may be followed.
func (w Watch) String() string {
	return w.Kind + ": " + cmp.Or(w.how(), "followed")
}

func (w Watch) how() string {
	since := " since " + w.Since.Local().Format(time.DateTime)
	if w.Error != "" {
		since += ": " + w.Error
	}
	switch {
	case w.Missing && w.Error == "":
		return "not known to the cluster (the CRD is not installed)"
	case w.Missing:
		return "not known to the cluster; that it comes may be noticed late: " + w.Error
	case w.Since.IsZero():
		return ""
	case w.Known:
		return "what was read before counts; not up to date" + since
	}
	if w.LeftOut {
		return "NOT ENFORCED, as it can't be read; all else is enforced without it; tried" + since
	}
	return "not read yet, tried" + since
}

package kube

import (
	"fmt"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// Report tells what a source holds.
type Report struct {
	// Path is the directory, or the address of the API server.
	Path  string `json:"path"`
	Files int    `json:"files"`
	// Kinds counts the objects by kind.
	Kinds map[string]int `json:"kinds"`
	// Ignored counts objects of kinds that mean nothing here.
	Ignored int `json:"ignored"`
	// Refused counts the policies that are closed instead of enforced, groups of
	// addresses not among them.
	Refused  int       `json:"refused"`
	Problems []Problem `json:"problems,omitempty"`
	// Notes are what people must know of the source besides, in words.
	Notes []string `json:"notes,omitempty"`
	// Complete: nothing is missing that no earlier valid state stands in for, and
	// that is not left out (Watch).
	Complete bool `json:"complete"`
	// Watches, of an API server, tell how each kind is followed.
	Watches []Watch `json:"watches,omitempty"`
}

// Problem is one thing that is wrong with what was read.
type Problem struct {
	Kind     ProblemKind `json:"kind"`
	File     string      `json:"file,omitempty"`
	Document int         `json:"document,omitempty"`
	Line     int         `json:"line,omitempty"`
	Object   string      `json:"object,omitempty"` // "Pod shop/web"
	Message  string      `json:"message"`
	// Fallback: an earlier valid state is in force.
	Fallback bool `json:"fallback,omitempty"`
}

// ProblemKind says what is concerned.
type ProblemKind string

const (
	BrokenFile   ProblemKind = "broken-file"   // can't be read as YAML
	BrokenObject ProblemKind = "broken-object" // is not a valid Pod, Service, ...
	Duplicate    ProblemKind = "duplicate"     // another document has the same object
	Refused      ProblemKind = "refused"       // a policy that is closed, not enforced
	Suspicious   ProblemKind = "suspicious"    // a policy that is enforced, but may not mean what was meant
)

func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += fmt.Sprintf(":%d", p.Line)
	}
	for _, part := range []string{p.Object, p.Message} {
		if s != "" && part != "" {
			s += ": "
		}
		s += part
	}
	return s
}

// Name is the object as kubectl users say it: "Pod shop/web".
func Name(o policy.Object) string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

func (t *tree) report(path string) Report {
	r := Report{Path: path, Files: len(t.files), Kinds: map[string]int{}, Complete: true}
	for key := range t.want {
		r.Kinds[key.Kind]++
	}
	for _, p := range t.paths() {
		f := t.files[p]
		for _, b := range f.broken {
			b.Fallback = f.valid
			r.Complete = r.Complete && f.valid
			r.Problems = append(r.Problems, b)
		}
		for _, d := range f.docs {
			r.Ignored += d.unknown
			for _, b := range d.problems {
				if b.Kind == BrokenObject {
					_, b.Fallback = t.want[b.key]
					r.Complete = r.Complete && b.Fallback
				}
				r.Problems = append(r.Problems, b.Problem)
			}
		}
	}
	for _, v := range t.want {
		if refused(v) {
			r.Refused++
		}
	}
	r.Problems = append(r.Problems, t.clashes...)
	return r
}

// From says where the objects are from: "3 files in objects", or "from
// https://10.96.0.1:443, synced".
func (r Report) From() string {
	if len(r.Watches) == 0 {
		if r.Files == 1 {
			return "1 file in " + r.Path
		}
		return fmt.Sprintf("%d files in %s", r.Files, r.Path)
	}
	state := "synced"
	for _, w := range r.Watches {
		switch {
		case !w.read() && !w.LeftOut:
			return "from " + r.Path + ", NOT READ YET"
		case w.LeftOut:
			state = "NOT ALL OF IT READ"
		case !w.Since.IsZero() && state == "synced":
			state = "NOT UP TO DATE"
		}
	}
	return "from " + r.Path + ", " + state
}

// Policies counts the policies, refused ones included. Groups of addresses are
// none: they select nobody.
func (r Report) Policies() int {
	return r.Kinds[api.KindNetworkPolicy] + r.Kinds[api.KindCiliumPolicy] + r.Kinds[api.KindClusterwide]
}

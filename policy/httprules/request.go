package httprules

import "strconv"

// Request is what rules see of a request. It may be reused from one Match to
// the next, by one goroutine at a time.
type Request struct {
	Method []byte
	// Path is the target in origin form with its query, as NormalizePath
	// returned it.
	Path []byte
	// Host is the authority as it was sent; empty where there is none.
	Host []byte
	// Headers are the fields in their order, values without the white space
	// around them. Names are compared without case.
	Headers []Header

	changes []Change
	found   []uint64
}

// Header is one field.
type Header struct{ Name, Value []byte }

// Action is what a Change does.
type Action uint8

const (
	// ActionLog changes nothing; the mismatch is only told.
	ActionLog Action = iota
	// ActionAdd adds one more field.
	ActionAdd
	// ActionDelete removes every field of that name.
	ActionDelete
	// ActionReplace removes every field of that name and adds one.
	ActionReplace
)

func (a Action) String() string {
	switch a {
	case ActionLog:
		return "LOG"
	case ActionAdd:
		return "ADD"
	case ActionDelete:
		return "DELETE"
	case ActionReplace:
		return "REPLACE"
	}
	return "Action(" + strconv.Itoa(int(a)) + ")"
}

// Change is what a rule's headerMatches ask to be made of a request that it
// lets pass.
type Change struct {
	Action      Action
	Name, Value string
	Rule        uint32 // Rule.Rule of the rule that asks for it
}

// Result tells what a Set says about a request.
type Result struct {
	// Index is the place in Compile's slice of the rule that decides, the
	// first one that matches; negative: none does.
	Index int
	// Rule is its number, Rule.Rule.
	Rule uint32
	// Exceeded: a regular expression was taken as not matching since it costs
	// too much to tell for this request.
	Exceeded bool
	// Changes to make, of every rule that matches, in the order of the rules.
	// They are the Request's memory: gone at its next Match.
	Changes []Change
}

// Matched tells whether a rule matches.
func (r Result) Matched() bool { return r.Index >= 0 }

package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Error is one reason to refuse an object, or what is suspicious about it.
type Error struct {
	File     string // as it was named; may be empty
	Document int    // from 1; 0: not known
	Line     int    // from 1; 0: not known
	Field    string // "spec.ingress[0].toPorts"; empty: the document as a whole
	Message  string
	// NotEnforced, of a warning: what stands there is accepted, and not enforced
	// as written.
	NotEnforced bool
}

// Error says "file:line: field: message" on one line, less what is not known.
// What a terminal would take for a command is escaped.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.File != "" && e.Line > 0:
		fmt.Fprintf(&b, "%s:%d: ", e.File, e.Line)
	case e.File != "":
		fmt.Fprintf(&b, "%s: ", e.File)
	case e.Line > 0:
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Field != "" {
		fmt.Fprintf(&b, "%s: ", e.Field)
	}
	b.WriteString(e.Message)
	return escape(b.String())
}

// escape writes characters that can't be printed as Go would.
func escape(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}

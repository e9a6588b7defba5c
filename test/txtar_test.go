package test

import (
	"fmt"
	"strings"
	"testing"
)

// archive is a file in txtar form: a text, then files, each after a line
// "-- NAME --".
type archive struct {
	text  string
	files map[string]string
}

func parseArchive(s string) archive {
	a := archive{files: map[string]string{}}
	name := ""
	for line := range strings.Lines(s) {
		if n, ok := strings.CutPrefix(strings.TrimRight(line, " \n"), "-- "); ok {
			if n, ok := strings.CutSuffix(n, " --"); ok {
				name = strings.TrimSpace(n)
				a.files[name] = ""
				continue
			}
		}
		if name == "" {
			a.text += line
		} else {
			a.files[name] += line
		}
	}
	return a
}

// words splits a line at blanks; a part of a word in double quotes keeps its
// blanks. What follows a # outside of quotes is a comment.
func words(line string) ([]string, error) {
	var out []string
	var word strings.Builder
	quoted, started := false, false
	flush := func() {
		if started {
			out = append(out, word.String())
		}
		word.Reset()
		started = false
	}
scan:
	for i := range len(line) {
		switch c := line[i]; {
		case c == '"':
			quoted, started = !quoted, true
		case quoted:
			word.WriteByte(c)
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			flush()
		case c == '#' && !started:
			break scan
		default:
			word.WriteByte(c)
			started = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is not closed")
	}
	flush()
	return out, nil
}

func TestWords(t *testing.T) {
	for line, want := range map[string]string{
		"":                              "",
		"# nothing":                     "",
		"a b  c\n":                      "a|b|c",
		`a header="X-A: b" => 200`:      "a|header=X-A: b|=>|200",
		`GET a:80/x#y "" # the comment`: "GET|a:80/x#y|",
	} {
		got, err := words(line)
		if err != nil || strings.Join(got, "|") != want {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	if _, err := words(`a "b`); err == nil {
		t.Error("an open quote is taken")
	}
}

func TestArchive(t *testing.T) {
	a := parseArchive("one\ntwo\n-- a.yaml --\nkind: A\n---\nkind: B\n-- b --\n")
	if a.text != "one\ntwo\n" || a.files["a.yaml"] != "kind: A\n---\nkind: B\n" || len(a.files) != 2 {
		t.Errorf("%+v", a)
	}
}

package httprules

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func request(method, path, host string, headers ...string) *Request {
	r := &Request{Method: []byte(method), Path: []byte(path), Host: []byte(host)}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Headers = append(r.Headers, Header{[]byte(name), []byte(value)})
	}
	return r
}

func compile(t testing.TB, rules ...Rule) *Set {
	t.Helper()
	s, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// naive is what Match must say, rule by rule with package regexp.
func naive(rules []Rule, req *Request) (indexes []int) {
	full := func(expr string, v []byte) bool {
		if expr == "" {
			return true
		}
		// Not wrapped in \A(?:...)\z: an expression may end in the middle of a
		// quote. The longest of the leftmost matches is the whole, if any is.
		re := regexp.MustCompile(expr)
		re.Longest()
		at := re.FindIndex(v)
		return at != nil && at[0] == 0 && at[1] == len(v)
	}
	for i, r := range rules {
		ok := full(r.Path, req.Path) && full(r.Method, req.Method) && full(r.Host, req.Host)
		demand := func(name, value string, present bool) {
			var values []string
			for _, h := range req.Headers {
				if strings.EqualFold(string(h.Name), name) {
					values = append(values, string(h.Value))
				}
			}
			ok = ok && len(values) > 0 && (present || strings.Join(values, ",") == value)
		}
		for _, h := range r.Headers {
			name, value, has := strings.Cut(h, " ")
			demand(strings.TrimRight(name, ":"), value, !has)
		}
		for _, m := range r.HeaderMatches {
			if m.Mismatch == "" {
				demand(m.Name, m.Value, m.Value == "")
			}
		}
		if ok {
			indexes = append(indexes, i)
		}
	}
	return indexes
}

func first(indexes []int) int {
	if len(indexes) == 0 {
		return -1
	}
	return indexes[0]
}

// SEMANTICS 27: regular expressions match the whole of :path with its query,
// the method with its case, the host with its port.
func TestWholeValue(t *testing.T) {
	for _, c := range []struct {
		rule               Rule
		method, path, host string
		want               bool
	}{
		{Rule{Path: "/public"}, "GET", "/public", "h", true},
		{Rule{Path: "/public"}, "GET", "/public?x=1", "h", false},
		{Rule{Path: "/public"}, "GET", "/public/", "h", false},
		{Rule{Path: "/public.*"}, "GET", "/public?x=1", "h", true},
		{Rule{Path: "/search[?]q=[a-z]+"}, "GET", "/search?q=abc", "h", true},
		{Rule{Path: "/search[?]q=[a-z]+"}, "GET", "/search?q=ABC", "h", false},
		{Rule{Path: "/a|/b"}, "GET", "/a", "h", true},
		{Rule{Path: "/a|/b"}, "GET", "/ab", "h", false},
		{Rule{Path: "/a|/b"}, "GET", "/a/b", "h", false},
		{Rule{Path: "/a|/b"}, "GET", "/xb", "h", false},
		{Rule{Path: "^/a$"}, "GET", "/a", "h", true},
		{Rule{Path: "/a$/b"}, "GET", "/a/b", "h", false},
		{Rule{Path: `/\bfoo\b/.*`}, "GET", "/foo/bar", "h", true},
		{Rule{Path: `/.*\Bx\b.*`}, "GET", "/foo/ax-b", "h", true},
		{Rule{Path: `/.*\Bx\b.*`}, "GET", "/foo/x-b", "h", false},
		{Rule{Path: `(?i)/AbC`}, "GET", "/aBc", "h", true},
		{Rule{Path: `/.{3}`}, "GET", "/abc", "h", true},
		{Rule{Path: `/.{3}`}, "GET", "/abcd", "h", false},
		{Rule{Path: `.*`}, "GET", "*", "h", true},
		{Rule{Path: `/é`}, "GET", "/%C3%A9", "h", false},
		{Rule{Path: `/[^a]`}, "GET", "/b", "h", true},
		{Rule{Path: `/\pL+`}, "GET", "/abZ", "h", true},
		{Rule{Method: "GET"}, "GET", "/", "h", true},
		{Rule{Method: "GET"}, "get", "/", "h", false},
		{Rule{Method: "GET"}, "GETX", "/", "h", false},
		{Rule{Method: "GET|HEAD"}, "HEAD", "/", "h", true},
		{Rule{Host: "web[.]shop"}, "GET", "/", "web.shop", true},
		{Rule{Host: "web[.]shop"}, "GET", "/", "web.shop:8080", false},
		{Rule{Host: "web[.]shop"}, "GET", "/", "WEB.shop", false},
		{Rule{Host: "(?i)web[.]shop(:[0-9]+)?"}, "GET", "/", "WEB.shop:8080", true},
		{Rule{Host: "web"}, "GET", "/", "", false},
		{Rule{Host: ".*"}, "GET", "/", "", true},
		{Rule{Host: `^$`}, "GET", "/", "", true},
		{Rule{}, "GET", "/", "h", true},
		{Rule{Path: "/a", Method: "GET", Host: "h"}, "GET", "/a", "h", true},
		{Rule{Path: "/a", Method: "GET", Host: "h"}, "PUT", "/a", "h", false},
	} {
		s := compile(t, c.rule)
		for range 2 { // with states to be made, and made
			if got := s.Match(request(c.method, c.path, c.host)).Matched(); got != c.want {
				t.Errorf("%+v on %s %s of %q: %v, want %v", c.rule, c.method, c.path, c.host, got, c.want)
			}
		}
	}
}

// SEMANTICS 25: the rules for one peer and port are a union; the first one in
// order that matches decides.
func TestUnion(t *testing.T) {
	s := compile(t, Rule{Path: "/a", Rule: 7}, Rule{Path: "/b", Rule: 8}, Rule{Path: "/.*", Method: "PUT", Rule: 9}, Rule{Path: "/a", Rule: 10})
	for _, c := range []struct {
		method, path string
		index        int
		rule         uint32
	}{{"GET", "/a", 0, 7}, {"GET", "/b", 1, 8}, {"PUT", "/c", 2, 9}, {"PUT", "/b", 1, 8}, {"GET", "/c", -1, 0}} {
		if got := s.Match(request(c.method, c.path, "h")); got.Index != c.index || got.Rule != c.rule {
			t.Errorf("%s %s: rule %d at %d, want %d at %d", c.method, c.path, got.Rule, got.Index, c.rule, c.index)
		}
	}
	if compile(t).Match(request("GET", "/", "h")).Matched() {
		t.Error("a set without rules matched")
	}
}

// SEMANTICS 28: values are literal, names have no case, several fields are one
// value.
func TestHeaders(t *testing.T) {
	for _, c := range []struct {
		rule    Rule
		headers []string
		want    bool
	}{
		{Rule{Headers: []string{"X-A: v"}}, []string{"X-A: v"}, true},
		{Rule{Headers: []string{"X-A: v"}}, []string{"x-a: v"}, true},
		{Rule{Headers: []string{"X-A: v"}}, []string{"X-A: V"}, false},
		{Rule{Headers: []string{"X-A: v"}}, []string{"X-A: vv"}, false},
		{Rule{Headers: []string{"X-A: .*"}}, []string{"X-A: v"}, false},
		{Rule{Headers: []string{"X-A: a b"}}, []string{"X-A: a b"}, true},
		{Rule{Headers: []string{"X-A: v"}}, nil, false},
		{Rule{Headers: []string{"X-A v"}}, []string{"X-A: v"}, true},
		{Rule{Headers: []string{"X-A"}}, []string{"X-A: anything"}, true},
		{Rule{Headers: []string{"X-A"}}, []string{"X-A: "}, true},
		{Rule{Headers: []string{"X-A"}}, []string{"X-B: v"}, false},
		{Rule{Headers: []string{"X-A: v", "X-B: w"}}, []string{"X-A: v", "X-B: w"}, true},
		{Rule{Headers: []string{"X-A: v", "X-B: w"}}, []string{"X-A: v"}, false},
		{Rule{Headers: []string{"X-A: v", "X-A: w"}}, []string{"X-A: v", "X-A: w"}, false},
		{Rule{Headers: []string{"X-A: v", "X-A"}}, []string{"X-A: v"}, true},
		{Rule{Headers: []string{"X-A: v,w"}}, []string{"X-A: v", "X-A: w"}, true},
		{Rule{Headers: []string{"X-A: v"}}, []string{"X-A: v", "X-A: v"}, false},
		{Rule{Headers: []string{"X-A"}}, []string{"X-A: v", "X-A: v"}, true},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "X-A", Value: "v"}}}, []string{"X-A: v"}, true},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "X-A", Value: "v"}}}, []string{"X-A: w"}, false},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "X-A"}}}, []string{"X-A: w"}, true},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "X-A"}}}, nil, false},
	} {
		if got := compile(t, c.rule).Match(request("GET", "/", "h", c.headers...)).Matched(); got != c.want {
			t.Errorf("%+v on %q: %v, want %v", c.rule, c.headers, got, c.want)
		}
	}
}

// SEMANTICS 28: a mismatch that is to LOG, ADD, DELETE or REPLACE lets the
// request pass, with that change.
func TestHeaderChanges(t *testing.T) {
	change := func(a Action, value string) []Change { return []Change{{a, "X-A", value, 5}} }
	for _, c := range []struct {
		mismatch, value string
		headers         []string
		want            []Change
	}{
		{"LOG", "one", nil, change(ActionLog, "one")},
		{"LOG", "one", []string{"X-A: one"}, nil},
		{"LOG", "", []string{"X-A: two"}, nil},
		{"ADD", "one", nil, change(ActionAdd, "one")},
		{"ADD", "one", []string{"x-a: two"}, change(ActionAdd, "one")},
		{"ADD", "one", []string{"x-a: one"}, nil},
		{"ADD", "", nil, change(ActionAdd, "")},
		{"DELETE", "one", nil, nil},
		{"DELETE", "one", []string{"X-A: two"}, change(ActionDelete, "one")},
		{"DELETE", "one", []string{"X-A: one", "X-A: one"}, change(ActionDelete, "one")},
		{"DELETE", "one", []string{"X-A: one"}, nil},
		{"DELETE", "", nil, nil},
		{"REPLACE", "one", nil, change(ActionReplace, "one")},
		{"REPLACE", "one", []string{"X-A: two"}, change(ActionReplace, "one")},
		{"REPLACE", "one,two", []string{"X-A: one", "X-A: two"}, nil},
	} {
		s := compile(t, Rule{Rule: 5, HeaderMatches: []HeaderMatch{{Mismatch: c.mismatch, Name: "X-A", Value: c.value}}})
		got := s.Match(request("GET", "/", "h", c.headers...))
		if !got.Matched() {
			t.Errorf("%s %q on %q: no match", c.mismatch, c.value, c.headers)
		}
		if d := cmp.Diff(c.want, got.Changes); len(c.want)+len(got.Changes) > 0 && d != "" {
			t.Errorf("%s %q on %q: %s", c.mismatch, c.value, c.headers, d)
		}
	}
	// Every rule that matches makes its changes, equal ones once; those that
	// don't match make none.
	add := func(v string) []HeaderMatch { return []HeaderMatch{{Mismatch: "ADD", Name: "X-A", Value: v}} }
	s := compile(t, Rule{Path: "/.*"}, Rule{Path: "/a", HeaderMatches: add("1")}, Rule{Path: "/b", HeaderMatches: add("2")},
		Rule{HeaderMatches: add("1")}, Rule{HeaderMatches: add("3")})
	got := s.Match(request("GET", "/a", "h"))
	want := []Change{{ActionAdd, "X-A", "1", 0}, {ActionAdd, "X-A", "3", 0}}
	if d := cmp.Diff(want, got.Changes); got.Index != 0 || d != "" {
		t.Errorf("rule %d: %s", got.Index, d)
	}
}

func TestCheckRule(t *testing.T) {
	many := "(abcdefghijklmnop){900}"
	for _, c := range []struct {
		rule Rule
		want string // part of the error; empty: fine
	}{
		{Rule{}, ""},
		{Rule{Path: "/a", Method: "GET|PUT", Host: "h", Headers: []string{"X-A", "X-B: v"}}, ""},
		{Rule{Path: "/("}, "path: not a regular expression"},
		{Rule{Path: `/a)(b`}, "path: not a regular expression"},
		{Rule{Path: `(?=a)`}, "path: not a regular expression"},
		{Rule{Path: `(a)\1`}, "path: not a regular expression"},
		{Rule{Method: "["}, "method: not a regular expression"},
		{Rule{Host: "*.example.com"}, "host: not a regular expression"},
		{Rule{Path: many}, "too large"},
		{Rule{Path: "/" + strings.Repeat("x", maxRegexBytes)}, "65537 bytes"},
		{Rule{Headers: []string{"X-A:v"}}, `headers[0]: "X-A:v" asks for a header of that whole name`},
		{Rule{Headers: []string{"X-A:"}}, "whole name"},
		{Rule{Headers: []string{"X-B", ""}}, "headers[1]: \"\" has no name"},
		{Rule{Headers: []string{" v"}}, "has no name"},
		{Rule{Headers: []string{": v"}}, "has no name"},
		{Rule{Headers: []string{":path /x"}}, "not a header name"},
		{Rule{Headers: []string{"X\tA: v"}}, "not a header name"},
		{Rule{Headers: []string{"X-A: v\r\nX-B: w"}}, "control character"},
		{Rule{HeaderMatches: []HeaderMatch{{Value: "v"}}}, "headerMatches[0]: no name"},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "X:A"}}}, "not a header name"},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "X-A", Mismatch: "add"}}}, "none of LOG, ADD, DELETE, REPLACE"},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "X-A", Mismatch: "ADD", Value: "a\nb"}}}, "control character"},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "Content-length", Mismatch: "REPLACE", Value: "0"}}}, "can't be changed"},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "HOST", Mismatch: "REPLACE", Value: "x"}}}, "can't be changed"},
		{Rule{HeaderMatches: []HeaderMatch{{Name: "Host", Mismatch: "LOG", Value: "x"}}}, ""},
	} {
		err := CheckRule(c.rule)
		if c.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80v: %v, want %q", fmt.Sprint(c.rule), err, c.want)
		}
		if _, cerr := Compile([]Rule{{}, c.rule}); (cerr == nil) != (err == nil) || cerr != nil && !strings.HasPrefix(cerr.Error(), "HTTP rule 1: ") {
			t.Errorf("%.80v: Compile says %v, CheckRule %v", fmt.Sprint(c.rule), cerr, err)
		}
	}
	var large []Rule
	for range 80 {
		large = append(large, Rule{Path: "(abcdefgh){900}"})
	}
	if _, err := Compile(large); err == nil || !strings.Contains(err.Error(), "too large together") {
		t.Errorf("a set of %d large rules: %v", len(large), err)
	}
}

// A value that is not ASCII matches no regular expression.
func TestNonASCII(t *testing.T) {
	s := compile(t, Rule{Path: ".*"}, Rule{Method: "GET"})
	for range 2 {
		if got := s.Match(request("GET", "/\u00e9", "h")); got.Index != 1 {
			t.Errorf("matched %d, want 1", got.Index)
		}
	}
}

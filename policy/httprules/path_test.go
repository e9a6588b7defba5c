package httprules

import (
	"bytes"
	"errors"
	"testing"
)

// SEMANTICS 29: the path is normalised before rules see it; what servers read
// in different ways is refused.
func TestNormalizePath(t *testing.T) {
	for _, c := range []struct {
		target, want string
		err          error
	}{
		{"/", "/", nil},
		{"*", "*", nil},
		{"/a/b", "/a/b", nil},
		{"/a/b/", "/a/b/", nil},
		{"/a/./b", "/a/b", nil},
		{"/a/../b", "/b", nil},
		{"/a/..", "/", nil},
		{"/a/b/..", "/a/", nil},
		{"/a/.", "/a/", nil},
		{"/.", "/", nil},
		{"/..", "/", nil},
		{"/../../x", "/x", nil},
		{"/...", "/...", nil},
		{"/.well-known/x", "/.well-known/x", nil},
		{"/a..b/..c", "/a..b/..c", nil},
		{"//a///b//", "/a/b/", nil},
		{"/a//../b", "/a/b", nil}, // the empty segment is what ".." takes back
		{"/a/.//b", "/a/b", nil},
		{"//", "/", nil},
		{"/%2e%2E/x", "/x", nil},
		{"/public/%2e%2e/private", "/private", nil},
		{"/public/.%2e/private", "/private", nil},
		{"/%70ublic/a", "/public/a", nil},
		{"/%7euser/%41%5F%2d", "/~user/A_-", nil},
		{"/a%20b", "/a%20b", nil},
		{"/caf%C3%A9", "/caf%C3%A9", nil},
		{"/%E9", "/%E9", nil},
		{"/%252e%252e/x", "/%252e%252e/x", nil},
		{"/a%3Fb", "/a%3Fb", nil},
		{"/a%23b", "/a%23b", nil},
		{"/a;v=1/../b", "/b", nil},
		{"/public/;/../x", "/public/x", nil},
		{"/a?b=../c//d&e=%zz%2f\\", "/a?b=../c//d&e=%zz%2f\\", nil},
		{"/a/../b?x/../y", "/b?x/../y", nil},
		{"/?", "/?", nil},
		{"/a:b@c!$&'()*+,=\"<>^`{|}", "/a:b@c!$&'()*+,=\"<>^`{|}", nil},

		{"", "", PathForm},
		{"a/b", "", PathForm},
		{"**", "", PathForm},
		{"?x", "", PathForm},
		{"/a%2fb", "", PathEncodedSlash},
		{"/public/..%2Fprivate", "", PathEncodedSlash},
		{"/a%5c..%5Cb", "", PathBackslash},
		{"/a\\b", "", PathBackslash},
		{"/a%00", "", PathNUL},
		{"/a\x00", "", PathControl},
		{"/a b", "", PathControl},
		{"/a\tb", "", PathControl},
		{"/a\x7f", "", PathControl},
		{"/a?x=\x01", "", PathControl},
		{"/a?x= ", "", PathControl},
		{"/caf\xc3\xa9", "", PathNonASCII},
		{"/a?x=\xc3\xa9", "", PathNonASCII},
		{"/a#b", "", PathFragment},
		{"/a?b#c", "", PathFragment},
		{"/%", "", PathEscape},
		{"/%2", "", PathEscape},
		{"/%2?x", "", PathEscape},
		{"/%zz", "", PathEscape},
		{"/%%32e", "", PathEscape},
		{"/%u002e", "", PathEscape},
		{"/%c0%af", "", PathOverlong},
		{"/%C0%AE%c0%ae/", "", PathOverlong},
		{"/%e0%80%af", "", PathOverlong},
		{"/%f0%80%80%af", "", PathOverlong},
		{"/%e0%a4%b9", "/%e0%a4%b9", nil},
		{"/a/..;/b", "", PathDotParameter},
		{"/a/.;x=1/b", "", PathDotParameter},
		{"/a/%2e%2e;/b", "", PathDotParameter},
		{"/a/..%3b/b", "", PathDotParameter},
	} {
		got, err := NormalizePath(nil, []byte(c.target))
		if !errors.Is(err, c.err) {
			t.Errorf("%q: error %v, want %v", c.target, err, c.err)
		} else if err == nil && string(got) != c.want {
			t.Errorf("%q: %q, want %q", c.target, got, c.want)
		}
	}
}

// Paths as they come, against a rule: what is judged is the normal form.
func TestMatchNormalized(t *testing.T) {
	s := compile(t, Rule{Path: "/public/.*"})
	for target, want := range map[string]string{
		"/public":                       "denied",
		"/public/":                      "allowed",
		"/public/a/b":                   "allowed",
		"/public/../private":            "denied",
		"/public/?q=/private":           "allowed",
		"/publicx/a":                    "denied",
		"/public/a?b=c":                 "allowed",
		"/private?x=/public/a":          "denied",
		"/public/%2e%2e/private":        "denied",
		"/public/..%2fprivate":          "refused",
		"/public/a%5c..%5cb":            "refused",
		"/public/%20":                   "allowed",
		"/public/;/../x":                "allowed",
		"/public/.":                     "allowed",
		"/public/..":                    "denied",
		"/public/a?..":                  "allowed",
		"/public//x":                    "allowed",
		"/%70ublic/a":                   "allowed",
		"/public/%2e%2e/%2e%2e/public/": "allowed",
		"//public/x":                    "allowed",
		"/public/%00":                   "refused",
		"*":                             "denied",
	} {
		got := "denied"
		if path, err := NormalizePath(nil, []byte(target)); err != nil {
			got = "refused"
		} else if s.Match(&Request{Path: path}).Matched() {
			got = "allowed"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}

func TestNormalizePathMemory(t *testing.T) {
	buf := make([]byte, 0, 64)
	target, other := []byte("/.a/b?c"), []byte("/a/../b?c")
	if got, _ := NormalizePath(buf, target); &got[0] != &target[0] {
		t.Error("an unchanged target was copied")
	}
	prefix := append(buf, "keep"...)
	if got, _ := NormalizePath(prefix, other); string(got) != "keep/b?c" {
		t.Errorf("appended to keep: %q", got)
	}
	if n := testing.AllocsPerRun(100, func() {
		_, _ = NormalizePath(buf, other)
		_, _ = NormalizePath(buf, []byte("/a%2f"))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPathErrors(t *testing.T) {
	seen := map[string]bool{}
	for e := PathForm; e <= PathDotParameter; e++ {
		if e.String() == "path" || e.Error() == "bad target" || seen[e.String()] {
			t.Errorf("reason %d has no label or no text of its own: %s: %s", e, e.String(), e.Error())
		}
		seen[e.String()] = true
	}
}

// What was normalised is normal, holds nothing that was to go, and never is
// longer.
func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/a/../b", "//a/%2e%2e/b?c//", "/%41%2f", "/a/..;/b", "/%c0%af", "/a/.//../%7e/"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, target []byte) {
		before := bytes.Clone(target)
		got, err := NormalizePath(nil, target)
		if !bytes.Equal(before, target) {
			t.Fatal("the target was written to")
		}
		if err != nil {
			return
		}
		if len(got) > len(target) {
			t.Errorf("%q grew to %q", target, got)
		}
		again, err := NormalizePath(nil, got)
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%q, from %q, becomes %q (%v)", got, target, again, err)
		}
		path, query, _ := bytes.Cut(got, []byte("?"))
		_, wantQuery, _ := bytes.Cut(target, []byte("?"))
		if !bytes.Equal(query, wantQuery) {
			t.Errorf("query %q became %q", wantQuery, query)
		}
		for _, part := range []string{"//", "/./", "/../", "\\", "#", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "%00"} {
			if bytes.Contains(path, []byte(part)) {
				t.Errorf("%q, from %q, holds %q", path, target, part)
			}
		}
		for _, c := range got {
			if c <= ' ' || c >= 0x7f {
				t.Errorf("%q holds byte %#x", got, c)
			}
		}
	})
}

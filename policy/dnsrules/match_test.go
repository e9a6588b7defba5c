package dnsrules

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The translation of patterns to regular expressions as Cilium documents it:
// names end with a dot there.
const (
	char        = "[-a-zA-Z0-9_]"
	manyLabels  = "(" + char + "+([.]" + char + "+){0,})[.]"
	everyName   = "^((" + char + "+[.])+|[.])$"
	beginsWith2 = `^\*{2,}\[\.\]`
)

var (
	lone   = regexp.MustCompile(`^\*+\.?$`)
	prefix = regexp.MustCompile(beginsWith2)
	stars  = regexp.MustCompile(`\*+`)
)

// maxName is the most characters of a name in a rule.
const maxName = 255

// oracle is what a name or pattern is as a regular expression, over names with
// a final dot. ofRule: of a DNS rule, else of a toFQDNs selector.
func oracle(t testing.TB, matchName, matchPattern string, ofRule bool) func(name string) bool {
	if lone.MatchString(matchPattern) {
		re := regexp.MustCompile(everyName)
		return func(name string) bool { return ofRule || re.MatchString(name) }
	}
	p := strings.ToLower(matchName + matchPattern)
	if !strings.HasSuffix(p, ".") {
		p += "."
	}
	p = strings.ReplaceAll(p, ".", "[.]")
	p = prefix.ReplaceAllString(p, manyLabels)
	re, err := regexp.Compile("^" + stars.ReplaceAllString(p, char+"*") + "$")
	if err != nil {
		t.Fatalf("%s %s: %v", matchName, matchPattern, err)
	}
	return re.MatchString
}

// TestPatterns has the examples of Cilium's documentation and tests.
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern        string
		accept, reject string
	}{
		{"cilium.io", "cilium.io", "anysub.cilium.io anysub.ci.io anysub.ciliumandmore.io"},
		{"*.cilium.io", "anysub.cilium.io www.cilium.io blog.cilium.io", "cilium.io google.com anysub.ci.io anysub.ciliumandmore.io a.b.cilium.io"},
		{"*cilium.io", "cilium.io subcilium.io sub-cilium.io", "www.cilium.io blog.cilium.io"},
		{"sub*.cilium.io", "sub.cilium.io subdomain.cilium.io", "www.cilium.io blog.cilium.io cilium.io google.com"},
		{"**.cilium.io", "app.cilium.io test.app.cilium.io test.cilium.io test.app.new.cilium.io", "cilium.io anysub.ci.io anysub.ciliumandmore.io"},
		{"***.cilium.io", "app.cilium.io test.app.cilium.io", "cilium.io"},
		{"*.ci*.io", "anysub.cilium.io anysub.ci.io anysub.ciliumandmore.io", "cilium.io"},
		{"*.ci**.io", "anysub.cilium.io anysub.ci.io anysub.ciliumandmore.io", "cilium.io"},
		{"test.**.cilium.io", "test.a.cilium.io", "test.a.b.cilium.io test.cilium.io a.test.a.cilium.io"},
		{"_foobar._tcp.cilium.io", "_foobar._tcp.cilium.io", "_tcp.cilium.io cilium.io"},
		{"*.*.cilium.io", "_foobar._tcp.cilium.io", "cilium.io a.cilium.io a.b.c.cilium.io"},
		{"**.*.cilium.io", "_foobar._tcp.cilium.io _foo._bar._tcp.cilium.io", "cilium.io foo.cilium.io"},
		{"**.ci*.io", "foo.bar.cilium.io anysub.cilium.io anysub.ci.io _foo._bar.ciliumandmore.io", "cilium.io test.calium.io"},
		{"*", ". io cilium.io svc.cluster.local service.namespace.svc.cluster.local _foobar._tcp.cilium.io", ""},
		{"**", ". io cilium.io _foobar._tcp.cilium.io", ""},
		{"***.", ". io cilium.io", ""},
		{"**cilium.io", "cilium.io subcilium.io", "www.cilium.io"},
		{"a*b*c.io", "abc.io axxbyyc.io abbbc.io", "ac.io acb.io ab.c.io"},
		{"ab*ba.io", "abba.io abxba.io", "aba.io"},
		{"*.COM.", "x.com Y.Com.", "com a.b.com"},
	} {
		s := NewSelector("", c.pattern)
		set := Compile([]Rule{{s, 7}})
		for want, names := range map[bool]string{true: c.accept, false: c.reject} {
			for _, name := range strings.Fields(names) {
				name = Normalize(name)
				if s.Matches(name) != want {
					t.Errorf("%q for %q: %v", c.pattern, name, !want)
				}
				if n, ok := set.MatchString(name); ok != want || ok && n != 7 {
					t.Errorf("rule %q for %q: %d %v", c.pattern, name, n, ok)
				}
			}
		}
	}
}

func TestNewSelector(t *testing.T) {
	for _, c := range []struct {
		name, pattern string
		want          Selector
	}{
		{"WWW.Example.COM.", "", Selector{Name: "www.example.com"}},
		{"", "www.Example.com", Selector{Name: "www.example.com"}},
		{"", "*.Example.com.", Selector{Pattern: "*.example.com"}},
		{"", "**", Selector{Pattern: "*"}},
		{"", "***.", Selector{Pattern: "*"}},
		{"", "****.example.com", Selector{Pattern: "**.example.com"}},
		{"", "**.a**b.***.com", Selector{Pattern: "**.a*b.*.com"}},
		{"", "***a.com", Selector{Pattern: "*a.com"}},
		{"", "", Selector{}},
		{"a", "b", Selector{}},
	} {
		if got := NewSelector(c.name, c.pattern); got != c.want {
			t.Errorf("%q %q: %+v, want %+v", c.name, c.pattern, got, c.want)
		}
		if again := NewSelector(c.want.Name, c.want.Pattern); again != c.want {
			t.Errorf("%+v again: %+v", c.want, again)
		}
	}
	for in, want := range map[string]string{"": "", ".": "", "A.b.": "a.b", `a\.`: `a\.`, `a\\.`: `a\\`, "Ä.COM": "Ä.com"} {
		if got := Normalize(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestNoSelector: what is neither a name nor a pattern selects nothing.
func TestNoSelector(t *testing.T) {
	for _, s := range []Selector{{}, {Name: "a", Pattern: "*"}} {
		for _, name := range []string{"", "a"} {
			if _, ok := Compile([]Rule{{s, 1}}).MatchString(name); ok || s.Matches(name) {
				t.Errorf("%+v is for %q", s, name)
			}
		}
	}
}

// TestSpecialNames: characters that no pattern speaks of are matched by
// nothing but a DNS rule for every name.
func TestSpecialNames(t *testing.T) {
	for _, name := range []string{`a\.b.com`, `\042.com`, "a b.com", "ä.com", "a..com", ".com", "com.", "A.com"} {
		for _, pattern := range []string{"*", "*.com", "**.com", "*b.com", "*.*.com", "com", "*om", "**.*", "*.*", "*.b.com"} {
			s := NewSelector("", pattern)
			if _, ok := Compile([]Rule{{s, 1}}).MatchString(name); ok != (pattern == "*") {
				// Empty labels are no names, but "*" is for nothing, too.
				if o := oracle(t, "", pattern, true); o(name+".") != ok {
					t.Errorf("rule %q for %q: %v", pattern, name, ok)
				}
			}
			if pattern == "*" && s.Matches(name) {
				t.Errorf("%q for %q", pattern, name)
			}
		}
	}
}

// TestFirstRule: of many rules for a name the first counts.
func TestFirstRule(t *testing.T) {
	rules := []Rule{{NewSelector("", "*.b.com"), 1}, {NewSelector("a.b.com", ""), 2}, {NewSelector("", "*"), 3}, {NewSelector("a.b.com", ""), 4},
		{NewSelector("", "**.com"), 5}, {NewSelector("", "*.b.com"), 6}}
	set := Compile(rules)
	for name, want := range map[string]uint32{"a.b.com": 1, "x.b.com": 1, "x.y.b.com": 3, "": 3} {
		if n, ok := set.MatchString(name); !ok || n != want {
			t.Errorf("%s: rule %d, want %d", name, n, want)
		}
	}
	selectors := make([]Selector, len(rules))
	for i, r := range rules {
		selectors[i] = r.Selector
	}
	if got := NewIndex(selectors).AppendMatches([]int{9}, []byte("a.b.com")); !slices.Equal(got, []int{9, 0, 1, 2, 3, 4, 5}) {
		t.Errorf("all rules: %v", got)
	}
	if n, ok := Compile(nil).MatchString("a"); ok || n != 0 {
		t.Error("no rule lets a name pass")
	}
}

// TestAgainstRegularExpressions compares large sets with Cilium's translation.
func TestAgainstRegularExpressions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	part := func(wild bool) string {
		parts := []string{"a", "b", "ab", "ba", "a-b", "_x", "aab", "A"}
		if wild {
			parts = append(parts, "*", "*", "a*", "*b", "a*b", "**", "*a*", "a**b*a", "*-*")
		}
		return parts[r.IntN(len(parts))]
	}
	join := func(wild bool) string {
		labels := make([]string, 1+r.IntN(4))
		for i := range labels {
			labels[i] = part(wild)
		}
		s := strings.Join(labels, ".")
		if wild && r.IntN(4) == 0 {
			s = "**." + s
		}
		if r.IntN(4) == 0 {
			s += "."
		}
		return s
	}
	for range 50 {
		var rules []Rule
		var selectors []Selector
		var oracles [2][]func(string) bool
		for i := range r.IntN(40) {
			name, pattern := "", join(true)
			if r.IntN(4) == 0 {
				name, pattern = join(false), ""
			}
			s := NewSelector(name, pattern)
			rules, selectors = append(rules, Rule{s, uint32(i + 1)}), append(selectors, s)
			oracles[0] = append(oracles[0], oracle(t, name, pattern, false))
			oracles[1] = append(oracles[1], oracle(t, name, pattern, true))
		}
		set, index := Compile(rules), NewIndex(selectors)
		for range 400 {
			name := Normalize(join(false))
			if r.IntN(10) == 0 {
				name = strings.Replace(name, "a", []string{"", "!", "."}[r.IntN(3)], 1)
			}
			var want []int
			first := uint32(0)
			for i := range rules {
				matches := oracles[0][i](name + ".")
				if matches {
					want = append(want, i)
				}
				if oracles[1][i](name+".") && first == 0 {
					first = uint32(i + 1)
				}
				if got := selectors[i].Matches(name); got != matches {
					t.Fatalf("%v for %q: %v", selectors[i], name, got)
				}
			}
			if got := index.AppendMatches(nil, []byte(name)); !slices.Equal(got, want) {
				t.Fatalf("%v for %q: %v, want %v", selectors, name, got, want)
			}
			if got, ok := set.MatchString(name); got != first || ok != (first != 0) {
				t.Fatalf("%v for %q: rule %d, want %d", selectors, name, got, first)
			}
		}
	}
}

// FuzzPattern compares one pattern and one name with Cilium's translation.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{"*", "**.", "*.a", "**.a*b", "a**", "a.b.", "*.*", "-._", "a*b*c.d"} {
		f.Add(s, "axb.c.a")
		f.Add(s, ".")
	}
	allowed := regexp.MustCompile(`^([-a-zA-Z0-9_*]+[.]?)+$`)
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if !allowed.MatchString(pattern) || len(pattern) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r > 0x7f || r == '\\' }) {
			return
		}
		s, name := NewSelector("", pattern), Normalize(name)
		if again := NewSelector(s.Name, s.Pattern); again != s {
			t.Errorf("%q: %v, then %v", pattern, s, again)
		}
		want := oracle(t, "", pattern, false)(name + ".")
		if got := s.Matches(name); got != want {
			t.Errorf("%q for %q: %v", pattern, name, got)
		}
		if got := NewIndex([]Selector{s}).AppendMatches(nil, []byte(name)); (len(got) == 1) != want {
			t.Errorf("index of %q for %q: %v", pattern, name, got)
		}
		if _, ok := Compile([]Rule{{s, 1}}).Match([]byte(name)); ok != oracle(t, "", pattern, true)(name+".") {
			t.Errorf("rule %q for %q: %v", pattern, name, ok)
		}
	})
}

// large is a set as of a cluster with very many rules.
func large(n int) *Set {
	rules := make([]Rule, 0, n)
	for i := range n {
		s := NewSelector(fmt.Sprintf("host%d.example%d.com", i, i%100), "")
		switch i % 4 {
		case 1:
			s = NewSelector("", fmt.Sprintf("*.zone%d.example%d.com", i, i%100))
		case 2:
			s = NewSelector("", fmt.Sprintf("**.deep%d.org", i))
		case 3:
			s = NewSelector("", fmt.Sprintf("node%d-*.example%d.com", i, i%100))
		}
		rules = append(rules, Rule{s, uint32(i)})
	}
	return Compile(rules)
}

func TestMatchAllocatesNothing(t *testing.T) {
	set := large(1000)
	sel := NewSelector("", "**.a*b.com")
	for _, name := range []string{"host0.example0.com", "x.zone1.example1.com", "a.b.c.deep2.org", "node3-17.example3.com", "nothing.example3.com"} {
		bytes := []byte(name)
		if n := testing.AllocsPerRun(100, func() { set.Match(bytes) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if n := testing.AllocsPerRun(100, func() { set.MatchString(name) }); n != 0 {
			t.Errorf("%s as a string: %v allocations", name, n)
		}
		if n := testing.AllocsPerRun(100, func() { sel.Matches(name) }); n != 0 {
			t.Errorf("selector, %s: %v allocations", name, n)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		set := large(n)
		for _, name := range []string{"host0.example0.com", "node3-17.example3.com", "a.b.c.deep2.org", "nothing.example3.com"} {
			b.Run(fmt.Sprint(n, "/", name), func(b *testing.B) {
				bytes := []byte(name)
				b.ReportAllocs()
				for b.Loop() {
					set.Match(bytes)
				}
			})
		}
	}
}

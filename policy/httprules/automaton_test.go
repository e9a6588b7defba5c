package httprules

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// randomRules makes rules and values over a small alphabet, so that they meet.
func randomRules(r *rand.Rand) ([]Rule, func() *Request) {
	atoms := []string{"a", "b", "/", "-", ".", "[ab]", "[^a]", "\\w", "\\W", "\\b", "\\B", "^", "$", "(?i:A)", "(a|b/)", "(?:ab)?", ".*", "a+", "b*?", "/{1,3}", "(?m:^)", "(?m:$)", "\\z", "\\A", "\\n", "(?s:.)", "()", "[[:alpha:]]"}
	expr := func() string {
		if r.IntN(4) == 0 {
			return ""
		}
		var b strings.Builder
		for range 1 + r.IntN(6) {
			b.WriteString(atoms[r.IntN(len(atoms))])
			if r.IntN(8) == 0 {
				b.WriteString("|")
			}
		}
		return b.String()
	}
	rules := make([]Rule, r.IntN(80))
	for i := range rules {
		rules[i] = Rule{Path: expr(), Rule: uint32(i) + 1}
		if r.IntN(2) == 0 {
			rules[i].Method = expr()
		}
		if r.IntN(2) == 0 {
			rules[i].Host = expr()
		}
		for range r.IntN(3) {
			rules[i].Headers = append(rules[i].Headers, []string{"A", "A: a", "B: b", "B: a,a", "A: "}[r.IntN(5)])
		}
	}
	value := func() []byte {
		b := make([]byte, r.IntN(8))
		for i := range b {
			b[i] = "ab/-.A\n"[r.IntN(7)]
		}
		return b
	}
	return rules, func() *Request {
		req := &Request{Path: value(), Method: value(), Host: value()}
		for range r.IntN(3) {
			req.Headers = append(req.Headers, Header{[]byte{"aAbB"[r.IntN(4)]}, []byte([]string{"a", "b", ""}[r.IntN(3)])})
		}
		return req
	}
}

// The automaton, its states full or not, says what package regexp says.
func TestAgainstRegexp(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		rules, next := randomRules(r)
		s := compile(t, rules...)
		for n := range 60 {
			req := next()
			if want, got := first(naive(rules, req)), s.Match(req).Index; got != want {
				t.Fatalf("seed %d: %q %q %q %q: rule %d, want %d\n%+v", seed, req.Method, req.Path, req.Host, req.Headers, got, want, rules)
			}
			if n == 30 { // from here on step by step
				for _, a := range s.dims {
					if a != nil {
						a.table.Load().full = true
					}
				}
			}
		}
	}
}

// Input made to visit ever new states stays within the bound, and is still
// judged rightly.
func TestTableBound(t *testing.T) {
	rules := []Rule{{Path: "(.*a.{14})"}, {Path: "(.*b.{13}/)"}}
	s := compile(t, rules...)
	reference := []*regexp.Regexp{regexp.MustCompile(`\A(?:` + rules[0].Path + `)\z`), regexp.MustCompile(`\A(?:` + rules[1].Path + `)\z`)}
	r := rand.New(rand.NewPCG(1, 2))
	tables := map[*table]bool{}
	path := make([]byte, 400)
	for range 5000 {
		for i := range path {
			path[i] = "ab/"[r.IntN(3)]
		}
		want := -1
		for i, re := range reference {
			if re.Match(path) {
				want = i
				break
			}
		}
		if got := s.Match(&Request{Path: path}).Index; got != want {
			t.Fatalf("%s: rule %d, want %d", path, got, want)
		}
		tab := s.dims[dimPath].table.Load()
		tables[tab] = true
		if tab.bytes > s.dims[dimPath].limit+4096 {
			t.Fatalf("table of %d bytes", tab.bytes)
		}
	}
	if len(tables) < 2 {
		t.Errorf("%d tables: the bound was never met", len(tables))
	}
}

// What costs too much to tell does not match, soon.
func TestMaxWork(t *testing.T) {
	var rules []Rule
	for i := range 300 {
		rules = append(rules, Rule{Path: fmt.Sprintf("(.*a.{900}%d)", i)})
	}
	s := compile(t, append(rules, Rule{Method: "GET"}, Rule{Path: "/(a|b)*"})...)
	r := rand.New(rand.NewPCG(1, 4))
	path := []byte("/")
	for range 16 << 10 {
		path = append(path, "ab"[r.IntN(2)])
	}
	for range 2 { // with states made on the way, and step by step
		start := time.Now()
		got := s.Match(&Request{Path: path})
		if got.Matched() || !got.Exceeded {
			t.Errorf("a request that costs too much: %+v", got)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("it took %v to tell", d)
		}
		if got := s.Match(&Request{Path: path, Method: []byte("GET")}); got.Index != 300 {
			t.Errorf("a rule without a path: %+v", got)
		}
		if got := s.Match(&Request{Path: path[:50]}); got.Index != 301 {
			t.Errorf("a short path: %+v", got)
		}
		s.dims[dimPath].table.Load().full = true
	}
}

func TestConcurrent(t *testing.T) {
	rules := manyRules(200)
	s := compile(t, rules...)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 3))
			req := &Request{Method: []byte("GET"), Host: []byte("h")}
			for range 2000 {
				want := r.IntN(220)
				req.Path = fmt.Appendf(req.Path[:0], "/api/v1/resource%d/%d", want, r.IntN(1000))
				if want >= 200 {
					want = -1
				}
				if got := s.Match(req).Index; got != want {
					t.Errorf("%s: rule %d", req.Path, got)
					return
				}
			}
		})
	}
	wg.Wait()
}

func manyRules(n int) []Rule {
	rules := make([]Rule, n)
	for i := range rules {
		rules[i] = Rule{Method: "GET|POST", Path: fmt.Sprintf("/api/v1/resource%d/[0-9]+", i), Rule: uint32(i + 1)}
	}
	return rules
}

func TestMatchAllocations(t *testing.T) {
	rules := append(manyRules(1000), Rule{Path: "/h", Headers: []string{"X-A: v"}, HeaderMatches: []HeaderMatch{{Mismatch: "ADD", Name: "X-B", Value: "w"}}})
	s := compile(t, rules...)
	for _, req := range []*Request{
		request("GET", "/api/v1/resource999/12345", "h", "User-Agent: t"),
		request("GET", "/nothing", "h", "User-Agent: t"),
		request("GET", "/h", "h", "X-A: v"),
		request("GET", "/h", "h", "X-A: v", "X-A: v"),
	} {
		s.Match(req)
		if n := testing.AllocsPerRun(100, func() { s.Match(req) }); n != 0 {
			t.Errorf("%s: %v allocations", req.Path, n)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("/public/.*", "/(a|b)$", "/public/x")
	f.Add(`\bx\B`, `(?i)[^a-z]+`, "/X?y")
	f.Add(`(.*a.{6}){2,3}`, `(?m)^a$\n`, "/aa\naa")
	f.Fuzz(func(t *testing.T, a, b, value string) {
		if len(a)+len(b) > 200 || len(value) > 200 {
			return
		}
		for _, c := range []byte(value) {
			if c >= 128 {
				return
			}
		}
		rules := []Rule{{Path: a}, {Path: b}}
		s, err := Compile(rules)
		if err != nil {
			return
		}
		req := &Request{Path: []byte(value)}
		for range 2 {
			if got, want := s.Match(req).Index, first(naive(rules, req)); got != want {
				t.Errorf("%q, %q on %q: rule %d, want %d", a, b, value, got, want)
			}
		}
	})
}

// The cost of a request is to depend little on how many rules there are, and
// not at all on the form of a rule.
func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for _, form := range []string{"/api/v1/resource%d/[0-9]+", "/api/v1/resource%d/12345", "/api/v1/resource%d/.*", ".*/resource%d/[^/]*"} {
			rules := make([]Rule, n)
			for i := range rules {
				rules[i] = Rule{Method: "GET", Path: fmt.Sprintf(form, i)}
			}
			s := compile(b, rules...)
			req := request("GET", fmt.Sprintf("/api/v1/resource%d/12345", n-1), "h", "User-Agent: t")
			b.Run(fmt.Sprintf("rules=%d/%s", n, strings.ReplaceAll(form, "/", "!")), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if s.Match(req).Index != n-1 {
						b.Fatal("no match")
					}
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	rules := manyRules(1000)
	for b.Loop() {
		compile(b, rules...)
	}
}

package fqdn

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy/dnsrules"
)

// scoped reads selectors as sel does, each behind its namespace and a slash if it
// has one.
func scoped(text string) []dnsrules.Selector {
	var out []dnsrules.Selector
	for _, s := range strings.Fields(text) {
		namespace, name, ok := strings.Cut(s, "/")
		if !ok {
			namespace, name = "", s
		}
		out = append(out, sel(name)[0].In(namespace))
	}
	slices.SortFunc(out, dnsrules.Selector.Compare)
	return out
}

func (r *rig) scopedNames(ids map[identity.ID]string) {
	r.t.Helper()
	all := map[identity.ID][]dnsrules.Selector{}
	for id, text := range ids {
		all[id] = scoped(text)
	}
	if err := r.SetNames(all, nil); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) learnFor(namespace, names string, addrs ...string) {
	r.t.Helper()
	a := answer(names, time.Hour, addrs...)
	a.Namespace = namespace
	if err := r.Learn(context.Background(), a); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) listed() (out []string) {
	r.t.Helper()
	err := r.List(context.Background(), "", func(n Name) error {
		for _, a := range n.Addresses {
			out = append(out, fmt.Sprintf("%s|%s %s %v", n.Namespace, n.Name, a.Addr, n.Selectors))
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// What an answer says that counts for a namespace matches selectors of that
// namespace, and no others; it stays so in a successor, however it learns.
func TestScopes(t *testing.T) {
	ids := map[identity.ID]string{300: "a.test", 301: "shop/a.test", 302: "ops/a.test", 303: "*.test", 304: "ops/* ops/a.test"}
	r := newRig(t, Settings{})
	r.scopedNames(ids)
	r.learnFor("shop", "a.test", "192.0.2.1")
	r.learnFor("ops", "b.test a.test", "192.0.2.2")
	r.learnFor("elsewhere", "a.test", "192.0.2.3")
	r.learnFor("", "b.test", "192.0.2.4")
	rows := map[string]identity.ID{"192.0.2.1": 301, "192.0.2.2": 304, "192.0.2.4": 303}
	r.want(rows)
	names := []string{
		"elsewhere|a.test 192.0.2.3 []", "ops|a.test 192.0.2.2 [ops/* ops/a.test]", "ops|b.test 192.0.2.2 [ops/*]",
		"shop|a.test 192.0.2.1 [shop/a.test]", "|b.test 192.0.2.4 [*.test]",
	}
	if got := r.listed(); !slices.Equal(got, names) {
		t.Errorf("%q, want %q", got, names)
	}
	// For both: a combination like any other, of which either part will do until it
	// has an identity, and what was there stays.
	r.learnFor("", "a.test", "192.0.2.1")
	ids[305] = "*.test a.test"
	r.want(rows)
	ids[306] = "shop/a.test *.test a.test"
	r.scopedNames(ids)
	rows["192.0.2.1"] = 306
	r.want(rows)
	// Namespaces whose policies don't name servers any more.
	delete(ids, 301)
	delete(ids, 306)
	r.scopedNames(ids)
	rows["192.0.2.1"] = 305
	r.want(rows)
	names = append(names, "|a.test 192.0.2.1 [*.test a.test]")
	names[3] = "shop|a.test 192.0.2.1 []"
	slices.Sort(names)

	var export bytes.Buffer
	if err := errorsOf(r.Export(&export), r.Retire()); err != nil {
		t.Fatal(err)
	}
	r.again(Settings{})
	r.scopedNames(ids)
	r.want(rows)
	if got := r.listed(); !slices.Equal(got, names) {
		t.Errorf("a successor knows %q, want %q", got, names)
	}
	heir := newRig(t, Settings{})
	heir.scopedNames(ids)
	if err := heir.Import(&export); err != nil {
		t.Fatal(err)
	}
	heir.want(rows)
	if got := heir.listed(); !slices.Equal(got, names) {
		t.Errorf("an heir knows %q, want %q", got, names)
	}
	if err := errorsOf(r.consistent(), heir.consistent()); err != nil {
		t.Error(err)
	}
	// As everything goes, so do the namespaces.
	heir.clock.advance(2 * time.Hour)
	heir.sweepNow()
	if n := len(heir.store.scopes.byName); n != 1 {
		t.Errorf("%d namespaces are left", n)
	}
}

// TestExportOfAnotherVersion: what a predecessor of another version says is not
// taken for something else.
func TestExportOfAnotherVersion(t *testing.T) {
	r := newRig(t, Settings{})
	for _, old := range []string{"\x05\x00\x00\x00\x01a\x00\x01\x04", "\x01\x00\x00\x80", "", "\x02\x00\x00"} {
		if err := r.Import(strings.NewReader(old)); err == nil {
			t.Errorf("%q is taken in", old)
		}
	}
	if n, _ := r.Len(); n != 0 {
		t.Errorf("%d names came of it", n)
	}
}

// TestManyNamespaces: there is an end to them, at which nobody else loses anything.
func TestManyNamespaces(t *testing.T) {
	r := newRig(t, Settings{})
	a := answer("a.test", time.Hour, "192.0.2.1")
	for i := range maxScopes + 10 {
		a.Namespace = fmt.Sprintf("n%d", i)
		if err := r.Learn(context.Background(), a); (err != nil) != (i >= maxScopes-1) {
			t.Fatalf("namespace %d: %v", i, err)
		}
	}
	a.Namespace = strings.Repeat("n", maxNamespace+1)
	if err := r.Learn(context.Background(), a); err == nil {
		t.Error("a name that is too long")
	}
	r.learnFor("", "a.test", "192.0.2.1")
	r.learnFor("n7", "b.test", "192.0.2.1")
	if err := r.consistent(); err != nil {
		t.Error(err)
	}
}

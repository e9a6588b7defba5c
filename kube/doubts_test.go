package kube

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// TestDoubts: what is missing at the start is told at once, what is missing later
// once it has been for a while, and neither for long after it is there.
func TestDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDoubts()
		var mu sync.Mutex // a timer brings Run about, which orders nothing
		var changed []string
		d.changed = func(o policy.Object) {
			mu.Lock()
			defer mu.Unlock()
			changed = append(changed, o.Name)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		to := d.After(&sink{})
		submit := func(yaml string, gone ...policy.Object) {
			t.Helper()
			var changes []policy.Change
			docs, broken := decodeFile("p.yaml", []byte(yaml), nil)
			if len(broken) > 0 {
				t.Fatal(broken)
			}
			for _, d := range docs {
				for _, o := range d.objects {
					changes = append(changes, policy.Change{Object: o.key, Value: o.value})
				}
			}
			for _, o := range gone {
				changes = append(changes, policy.Change{Object: o})
			}
			if err := to.Submit(ctx, changes); err != nil {
				t.Fatal(err)
			}
		}
		after := func(wait time.Duration, want ...string) {
			t.Helper()
			time.Sleep(wait)
			synctest.Wait()
			var got []string
			for _, p := range d.Problems() {
				if p.Kind != Suspicious {
					t.Errorf("%+v", p)
				}
				got = append(got, strings.TrimPrefix(p.Object, "CiliumNetworkPolicy shop/")+" "+p.Message)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%q, want %q", got, want)
			}
		}
		told := func(want ...string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(changed, want) {
				t.Errorf("changed: %q, want %q", changed, want)
			}
			changed = nil
		}
		cnp := func(name, group string) string {
			return "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: " + name + ", namespace: shop}\n" +
				"spec: {endpointSelector: {}, egress: [{toCIDRSet: [{cidrGroupRef: " + group + "}]}]}\n"
		}
		group := func(name string) string {
			return "---\napiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: " + name + "}\nspec: {externalCIDRs: [192.0.2.0/24]}\n"
		}
		const missing = " spec.egress[0].toCIDRSet[0].cidrGroupRef: there is no CiliumCIDRGroup "
		a := "a" + missing + "x: it stands for nobody"
		submit(cnp("a", "x") + cnp("b", "yard") + group("yard"))
		after(lookPause, a)
		told("a")
		submit("", policy.Object{Kind: api.KindCiliumCIDRGroup, Name: "yard"})
		after(missingFor, a)
		told()
		after(2*lookPause, a, "b"+missing+"yard: it stands for nobody")
		told("b")
		submit(group("x"))
		after(lookPause, "b"+missing+"yard: it stands for nobody")
		told("a")
		// One apply, in a bad order: nobody is told.
		submit(cnp("c", "z"))
		time.Sleep(5 * time.Second)
		submit(group("z") + group("yard"))
		after(time.Minute)
		told("b")
	})
}

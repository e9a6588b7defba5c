package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/policy"
)

// followed is a Cluster at a fake server.
type followed struct {
	*testing.T
	server *fakeServer
	source *Cluster
	sink   *sink
}

func followServer(t *testing.T, prepare func(*fakeServer)) *followed {
	t.Helper()
	c := &followed{T: t, server: newFakeServer(t), sink: &sink{}}
	prepare(c.server)
	c.run()
	return c
}

func (c *followed) run() {
	c.Helper()
	source, err := NewCluster(&rest.Config{Host: c.server.URL}, slog.New(slog.NewTextHandler(c.Output(), nil)))
	if err != nil {
		c.Fatal(err)
	}
	for _, f := range source.feeds {
		f.(*follower).limits = limits{first: 5 * time.Millisecond, last: 20 * time.Millisecond, silence: 200 * time.Millisecond, lookAgain: 150 * time.Millisecond}
	}
	c.source = source
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, c.sink) }()
	c.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.Errorf("Run: %v", err)
		}
	})
}

func (c *followed) soon(what string, cond func() bool) {
	c.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			c.Fatalf("%s: not so: %s, %+v", what, c.sink.names(), c.source.Report())
		}
	}
}

func (c *followed) has(names string) {
	c.Helper()
	c.soon(names, func() bool { return c.sink.names() == names })
}

func (c *followed) sync() {
	c.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.source.Sync(ctx); err != nil {
		c.Fatalf("sync: %v", err)
	}
}

func (c *followed) watch(kind string) Watch {
	for _, w := range c.source.Report().Watches {
		if w.Kind == kind {
			return w
		}
	}
	c.Fatalf("no watch of %s", kind)
	return Watch{}
}

func fakePod(ip string) map[string]any {
	return map[string]any{"status": map[string]any{"podIP": ip}}
}

func fakePolicy(spec string) map[string]any {
	return map[string]any{"spec": map[string]any{"podSelector": map[string]any{}, spec: []any{}}}
}

// Both ways to read everything give the same, and go on the same.
func TestClusterReadsAndFollows(t *testing.T) {
	for name, ill := range map[string]func(*fakeServer){
		"streamed": func(*fakeServer) {},
		"in pages": func(f *fakeServer) { f.noStreams = true },
		"refused by an old store": func(f *fakeServer) {
			f.refuse = func(r *http.Request) (int, string) {
				if r.URL.Query().Get("sendInitialEvents") != "" {
					return http.StatusInternalServerError, "InternalError"
				}
				return 0, ""
			}
		},
		"the end is never told": func(f *fakeServer) { f.silent = true },
	} {
		t.Run(name, func(t *testing.T) {
			c := followServer(t, func(f *fakeServer) {
				ill(f)
				for i := range 1203 {
					f.put("namespaces", fmt.Sprintf("n%d", i), map[string]any{})
				}
				f.put("pods", "shop/a", fakePod("10.0.0.1"))
				f.put("networkpolicies", "shop/web", fakePolicy("ingress"))
			})
			c.soon("everything", func() bool { return c.sink.called() > 0 })
			c.sync()
			if got := c.source.Report().Kinds; got["Namespace"] != 1203 || got["Pod"] != 1 || got["NetworkPolicy"] != 1 {
				t.Errorf("%v", got)
			}
			if c.sink.called() != 1 {
				t.Errorf("everything came in %d batches", c.sink.called())
			}
			c.server.put("pods", "shop/b", fakePod("10.0.0.2"))
			c.server.put("pods", "shop/a", nil)
			c.server.put("networkpolicies", "shop/web", fakePolicy("ingres"))
			c.sync()
			if c.sink.get("Pod", "shop", "a") != nil || c.sink.get("Pod", "shop", "b") == nil {
				t.Error(c.sink.names())
			}
			if r := c.source.Report(); r.Refused != 1 || !strings.HasPrefix(r.Problems[0].String(), "NetworkPolicy shop/web: spec.ingres: unknown field") {
				t.Errorf("report: %+v", r)
			}
			if n := c.server.asked("pods?", "resourceVersion=0"); n > 0 {
				t.Error("a version was asked for that makes pages void")
			}
			if got := testutil.CollectAndCount(c.source.Collector()); got < 9*7 {
				t.Errorf("%d metrics", got)
			}
			if problems, err := testutil.CollectAndLint(c.source.Collector()); err != nil || len(problems) > 0 {
				t.Errorf("metrics: %v %v", problems, err)
			}
		})
	}
}

// Nothing is handed on as long as one kind was not read.
func TestClusterWaitsForAllKinds(t *testing.T) {
	c := followServer(t, func(f *fakeServer) {
		f.put("pods", "shop/a", fakePod("10.0.0.1"))
		f.refuse = func(r *http.Request) (int, string) {
			if strings.HasSuffix(r.URL.Path, "/nodes") {
				return http.StatusServiceUnavailable, "ServiceUnavailable"
			}
			return 0, ""
		}
	})
	c.soon("the others are known", func() bool { return c.watch("Pod").Known && c.watch("Service").Known && c.watch("Node").Error != "" })
	time.Sleep(50 * time.Millisecond)
	if r := c.source.Report(); r.Complete || c.sink.called() != 0 || !strings.HasSuffix(r.From(), "NOT READ YET") {
		t.Errorf("%d calls, report %+v", c.sink.called(), r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.source.Sync(ctx); err == nil {
		t.Error("sync succeeds")
	}
	c.server.with(func() { c.server.refuse = nil })
	c.has("Pod shop/a")
	if !c.source.Report().Complete {
		t.Error("not complete")
	}
}

// A watch that ends goes on where it was; what can't be had any more is read
// again and only what differs is a change.
func TestClusterResumes(t *testing.T) {
	c := followServer(t, func(f *fakeServer) {
		for _, n := range []string{"a", "b", "c"} {
			f.put("pods", "shop/"+n, fakePod("10.0.0.1"))
		}
		f.put("networkpolicies", "shop/web", fakePolicy("ingress"))
	})
	c.has("NetworkPolicy shop/web, Pod shop/a, Pod shop/b, Pod shop/c")
	whole := func() int { return c.server.asked("/pods?", "sendInitialEvents") }
	if whole() != 1 {
		t.Fatalf("pods were read %d times", whole())
	}
	c.server.end()
	c.server.put("pods", "shop/d", fakePod("10.0.0.4"))
	c.has("NetworkPolicy shop/web, Pod shop/a, Pod shop/b, Pod shop/c, Pod shop/d")
	c.soon("restarts are counted", func() bool { return c.watch("Pod").Restarts > 0 })
	if whole() != 1 || c.watch("Pod").Relists != 0 {
		t.Errorf("pods were read %d times", whole())
	}

	before, deliveries := c.sink.count(), c.server.asked("/pods?")
	c.server.with(func() {
		c.server.refuse = func(*http.Request) (int, string) { return http.StatusServiceUnavailable, "ServiceUnavailable" }
	})
	c.server.end()
	c.soon("its absence is seen", func() bool { return !c.watch("Pod").Since.IsZero() })
	c.server.put("pods", "shop/a", nil)
	c.server.put("pods", "shop/b", fakePod("10.0.0.22"))
	c.server.with(func() { c.server.oldest, c.server.refuse = c.server.version+1, nil })
	c.has("NetworkPolicy shop/web, Pod shop/b, Pod shop/c, Pod shop/d")
	c.sync()
	if got := c.sink.count() - before; got != 2 {
		t.Errorf("%d changes came of two, after %d requests", got, c.server.asked("/pods?")-deliveries)
	}
	if whole() != 2 || c.watch("Pod").Relists != 1 || !c.watch("Pod").Since.IsZero() {
		t.Errorf("pods were read %d times; %+v", whole(), c.watch("Pod"))
	}

	// A server that comes from a copy of its data tells of the past.
	c.server.with(func() { c.server.oldest = 0 })
	c.server.with(func() {
		c.server.version, c.server.events = 5, nil
		delete(c.server.objects["pods"], "shop/d")
	})
	c.server.end()
	c.server.with(func() {
		c.server.events = append(c.server.events, fakeEvent{1000, "pods", "BOOKMARK", map[string]any{"metadata": map[string]any{"resourceVersion": "6"}}})
		c.server.tell()
	})
	c.has("NetworkPolicy shop/web, Pod shop/b, Pod shop/c")
}

// A kind that is not served any more has no objects, once that is sure.
func TestClusterKindThatGoes(t *testing.T) {
	const kind = "CiliumCIDRGroup"
	group := map[string]any{"spec": map[string]any{"externalCIDRs": []any{"192.0.2.0/24"}}}
	c := followServer(t, func(f *fakeServer) { f.put("ciliumcidrgroups", "g", group) })
	c.has("CiliumCIDRGroup g")
	c.server.with(func() { c.server.objects["ciliumcidrgroups"] = nil })
	started := time.Now()
	c.server.end()
	c.has("")
	if took := time.Since(started); took < 140*time.Millisecond {
		t.Errorf("it was believed after %v", took)
	}
	if w := c.watch(kind); !w.Missing || w.Known {
		t.Errorf("%+v", w)
	}
	if lags := strings.Join(c.source.Report().Lags(), "\n"); !strings.Contains(lags, "CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, CiliumCIDRGroup: not known to the cluster") {
		t.Errorf("lags: %s", lags)
	}
	c.server.put("ciliumcidrgroups", "g", group)
	c.has("CiliumCIDRGroup g")
	// An answer that is wrong for a moment takes nothing away.
	calls := c.sink.count()
	c.server.with(func() {
		c.server.refuse = func(r *http.Request) (int, string) {
			if strings.HasSuffix(r.URL.Path, "/ciliumcidrgroups") {
				return http.StatusNotFound, "NotFound"
			}
			return 0, ""
		}
	})
	c.server.end()
	c.soon("it is seen", func() bool { return c.watch(kind).Error != "" })
	c.server.with(func() { c.server.refuse = nil })
	c.soon("it is followed", func() bool { return c.watch(kind).Since.IsZero() && c.watch(kind).Known })
	c.sync()
	if got := c.sink.count(); got != calls {
		t.Errorf("%d changes", got-calls)
	}
}

func TestClusterBrokenObjects(t *testing.T) {
	c := followServer(t, func(f *fakeServer) {
		f.put("pods", "shop/a", fakePod("10.0.0.1"))
		f.put("pods", "shop/b", fakePod("10.0.0.256"))
	})
	c.has("Pod shop/a")
	if r := c.source.Report(); r.Complete || len(r.Problems) != 1 || r.Problems[0].Kind != BrokenObject || r.Problems[0].Fallback || r.Problems[0].Object != "Pod shop/b" {
		t.Errorf("report: %+v", r)
	}
	calls := c.sink.called()
	c.server.put("pods", "shop/b", fakePod("10.0.0.2"))
	c.has("Pod shop/a, Pod shop/b")
	c.soon("complete", func() bool { return c.source.Report().Complete })
	c.server.put("pods", "shop/a", fakePod("x"))
	c.sync()
	if r := c.source.Report(); !r.Complete || !r.Problems[0].Fallback || c.sink.get("Pod", "shop", "a").(*policy.Pod).Addresses[0].String() != "10.0.0.1" {
		t.Errorf("report: %+v", r)
	}
	c.server.put("pods", "shop/a", nil)
	c.has("Pod shop/b")
	if r := c.source.Report(); len(r.Problems) != 0 {
		t.Errorf("problems of an object that is gone: %v", r.Problems)
	}
	if c.sink.called() == calls {
		t.Error("nothing was handed on")
	}
}

// What the sink does not take is offered again, with what came since.
func TestClusterOffersAgain(t *testing.T) {
	c := followServer(t, func(f *fakeServer) { f.put("pods", "shop/a", fakePod("10.0.0.1")) })
	c.has("Pod shop/a")
	c.sink.mu.Lock()
	c.sink.fail = errors.New("busy")
	c.sink.mu.Unlock()
	c.server.put("pods", "shop/a", nil)
	c.server.put("pods", "shop/b", fakePod("10.0.0.2"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := c.source.Sync(ctx); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("sync: %v", err)
	}
	c.server.put("pods", "shop/b", fakePod("10.0.0.22"))
	c.sink.mu.Lock()
	c.sink.fail = nil
	c.sink.mu.Unlock()
	c.sync()
	c.has("Pod shop/b")
	if got := c.sink.get("Pod", "shop", "b").(*policy.Pod).Addresses[0].String(); got != "10.0.0.22" {
		t.Errorf("b has %s", got)
	}
}

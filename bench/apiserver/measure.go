package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirnet/weir/test/apiserver"
)

// bench is one run: a cluster, and an agent in it.
type bench struct {
	size    size
	options options
	server  *apiserver.Server
	write   *writer
	agent   *agent
	report  *report
	say     func(format string, args ...any)
}

// received are the bytes of all answers so far, uncompressed.
func (b *bench) received() float64 { return b.agent.sum("weir_kube_received_bytes_total") }

// sync measures how the agent comes up to date with what is there.
func (b *bench) sync(ctx context.Context, began time.Time, watchesBefore float64) error {
	a, r := b.agent, b.report
	if _, err := a.until(ctx, time.Minute, func(st status) bool { return st.Policy.Started }); err != nil {
		return fmt.Errorf("read all objects: %w", err)
	}
	read := time.Since(began)
	st, err := a.until(ctx, time.Minute, func(st status) bool { return st.Policy.Realised && len(st.Policy.Endpoints) == b.size.Own })
	if err != nil {
		return fmt.Errorf("write the policy of %d pods: %w", b.size.Own, err)
	}
	written := time.Since(began)
	r.most(3, "start of the process -> synced", written.Seconds(), "s", "objects read after %.2f s, policy of all pods of the node in the kernel's tables then; %.2f s of CPU, %d objects",
		read.Seconds(), a.cpu().Seconds(), st.total())
	const watch = `verb="watch"`
	lists, watches := a.sum("weir_kube_requests_total", `verb="list"`), a.sum("weir_kube_requests_total", watch)
	// Each kind is listed once for one object, to see whether it may be.
	how := "all objects came by streams (WatchList)"
	if watches != a.sum("weir_kube_requests_total", watch, `status="2xx"`) {
		how = "objects came in pages, as streams of them were refused"
	}
	r.add("requests to be synced", lists+watches, "", "%s lists, %s watches; %s", number(lists), number(watches), how)
	r.add("received to be synced", b.received()/1e6, "MB", "uncompressed")
	r.add("RSS when synced", a.memory("VmRSS"), "MB", "")

	// At rest.
	const rest = 10 * time.Second
	b.say("at rest for %v", rest)
	before := b.received()
	if err := pause(ctx, rest); err != nil {
		return err
	}
	open, err := b.watches()
	if err != nil {
		return err
	}
	r.add("watches open", open-watchesBefore, "", "as the API server counts")
	r.add("received at rest", (b.received()-before)/rest.Seconds()/1000, "kB/s", "in the first %v; it has the conditions that the agent writes to policies", rest)
	r.most(150, "RSS steady", a.memory("VmRSS"), "MB", "%v after; Go's heap %s MB", rest, number(a.sum("go_memstats_heap_alloc_bytes")/1e6))
	return nil
}

// watches are those that are open now, of everybody.
func (b *bench) watches() (sum float64, err error) {
	code, text, err := b.server.Do(http.MethodGet, "/metrics", "", nil)
	if err != nil || code != http.StatusOK {
		return 0, fmt.Errorf("metrics of the API server: status %d, %w", code, err)
	}
	for line := range bytes.Lines(text) {
		s := string(bytes.TrimSpace(line))
		if strings.HasPrefix(s, "apiserver_longrunning_requests{") && strings.Contains(s, `verb="WATCH"`) {
			v, err := strconv.ParseFloat(s[strings.LastIndexByte(s, ' ')+1:], 64)
			if err != nil {
				return 0, fmt.Errorf("metrics of the API server: %w", err)
			}
			sum += v
		}
	}
	return sum, nil
}

// changes changes policies that select pods of this node, one after another, and
// times each from the API server's answer until it is in the kernel's tables.
func (b *bench) changes(ctx context.Context) error {
	b.say("changing a policy %d times", b.options.changes)
	before := b.received()
	var times []time.Duration
	for i := range b.options.changes {
		policy := 2 * (i % max(1, min(b.size.Own, b.size.Policies)/2))
		was, err := b.agent.status(ctx)
		if err != nil {
			return err
		}
		path := fmt.Sprintf("/apis/cilium.io/v2/namespaces/%s/ciliumnetworkpolicies/p-%d", namespaceOf(policy%b.size.Namespaces), policy)
		if err := b.write.do(ctx, http.MethodPatch, path, object{"spec": ciliumPolicy(policy, 9000+i)["spec"]}); err != nil {
			return err
		}
		began := time.Now()
		if _, err := b.agent.until(ctx, 10*time.Second, func(st status) bool { return st.Policy.Revision > was.Policy.Revision && st.Policy.Realised }); err != nil {
			return fmt.Errorf("change %d of a policy: %w", i, err)
		}
		times = append(times, time.Since(began))
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	slices.Sort(times)
	at := func(q float64) float64 { return times[int(q*float64(len(times)-1))].Seconds() * 1000 }
	b.report.most(20, "policy change -> enforced, p50", at(.5), "ms", "from the API server's answer until it is in the kernel's tables; %d changes", len(times))
	b.report.most(100, "policy change -> enforced, p99", at(.99), "ms", "p90 %s ms, the longest %s ms", number(at(.9)), number(at(1)))
	b.report.add("received per change of a policy", (b.received()-before)/float64(len(times))/1000, "kB", "")
	return nil
}

// churn creates and deletes pods of other nodes at a rate, and measures how far
// the agent is behind when the last of them is there.
func (b *bench) churn(ctx context.Context) error {
	b.say("%d pods a second come, and as many go, for %v", b.options.rate, b.options.churn)
	received, cpu, began := b.received(), b.agent.cpu(), time.Now()
	ticks := time.NewTicker(time.Second / time.Duration(b.options.rate))
	defer ticks.Stop()
	planned := int(b.options.churn.Seconds() * float64(b.options.rate))
	errs := make(chan error, planned)
	slots := make(chan struct{}, 64)
	for n := range planned {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		slots <- struct{}{}
		go func() {
			err := b.write.pod(ctx, b.size, b.size.Pods+n)
			if err == nil {
				err = b.write.deletePod(ctx, b.size, b.size.Pods+n)
			}
			<-slots
			errs <- err
		}()
	}
	for range planned {
		if err := <-errs; err != nil {
			return err
		}
	}
	// One more tells the end: whoever has it has all the others.
	if err := b.write.pod(ctx, b.size, b.size.Pods+planned); err != nil {
		return err
	}
	took, last := time.Since(began), time.Now()
	_, err := b.agent.until(ctx, time.Minute, func(st status) bool { return st.Objects.Kinds["Pod"] == b.size.Pods+1 && st.Policy.Realised })
	if err != nil {
		return fmt.Errorf("come up to date after %d pods: %w", planned, err)
	}
	behind := time.Since(last)
	r := b.report
	r.least(.95*float64(b.options.rate), "pods that come a second, and as many that go", float64(planned)/took.Seconds(), "/s", "of other nodes, for %v", took.Round(time.Second))
	r.most(1000, "behind after the last of them", behind.Seconds()*1000, "ms", "")
	r.add("CPU of the agent meanwhile", 100*(b.agent.cpu()-cpu).Seconds()/took.Seconds(), "% of one", "")
	r.add("received meanwhile", (b.received()-received)/took.Seconds()/1000, "kB/s", "%s kB per pod", number((b.received()-received)/float64(planned)/1000))
	return nil
}

// end states what counts for all of the run.
func (b *bench) end() {
	b.report.most(200, "RSS, peak of all", b.agent.memory("VmHWM"), "MB", "%s MB at the end", number(b.agent.memory("VmRSS")))
	b.report.add("watches that had to go on anew", b.agent.sum("weir_kube_watch_restarts_total"), "", "%s lists anew", number(b.agent.sum("weir_kube_relists_total")))
}

// pause waits, unless the run is interrupted.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/deploy/crds"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

func main() {
	var s size
	flag.IntVar(&s.pods, "pods", 10_000, "pods, with status")
	flag.IntVar(&s.nodes, "nodes", 501, "nodes; one of them is the agent's")
	flag.IntVar(&s.namespaces, "namespaces", 1000, "namespaces")
	flag.IntVar(&s.policies, "policies", 1000, "policies, half of each kind")
	flag.IntVar(&s.own, "own", 100, "pods of the agent's node")
	binary := flag.String("weir", "bin/weir", "the binary")
	changes := flag.Int("changes", 300, "changes of a policy to time")
	churn := flag.Duration("churn", 15*time.Second, "how long pods come and go")
	rate := flag.Int("rate", 100, "pods that come or go per second")
	env := flag.String("env", "", "settings of the agent's environment, by comma")
	flag.Parse()
	if err := run(s, *binary, *changes, *churn, *rate, *env); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(s size, binary string, changes int, churn time.Duration, rate int, env string) (err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "weir-apiserver-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server, err := apiserver.Start(dir)
	if err != nil {
		return err
	}
	defer server.Close()
	w, err := newWriter(&rest.Config{Host: server.URL, BearerToken: server.Token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		return err
	}
	start := time.Now()
	if err := define(ctx, w); err != nil {
		return err
	}
	if err := w.load(ctx, s); err != nil {
		return err
	}
	fmt.Printf("%d pods on %d nodes in %d namespaces, %d policies, created in %.0f s\n\n", s.pods, s.nodes, s.namespaces, s.policies, time.Since(start).Seconds())

	kubeconfig, err := server.Kubeconfig()
	if err != nil {
		return err
	}
	start = time.Now()
	var vars []string
	if env != "" {
		vars = strings.Split(env, ",")
	}
	a, err := startAgent(binary, fmt.Sprintf("bench-api-%d", os.Getpid()), kubeconfig, filepath.Join(os.TempDir(), "weir-bench-agent.log"), vars)
	if err != nil {
		return err
	}
	defer func() {
		if e := a.stop(); err == nil {
			err = e
		}
	}()
	if _, err := a.until(time.Minute, func(st status) bool { return st.Policy.Started }); err != nil {
		return err
	}
	synced := time.Since(start)
	st, err := a.until(time.Minute, func(st status) bool { return st.Policy.Realised && len(st.Policy.Endpoints) == s.own })
	if err != nil {
		return err
	}
	realised := time.Since(start)
	fmt.Printf("| what | measured |\n|---|---|\n")
	row := func(what, format string, args ...any) {
		fmt.Printf("| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	row("start of the process -> objects read / policy written", "%.2f s / %.2f s, %.2f s of CPU, %d objects", synced.Seconds(), realised.Seconds(), a.cpu().Seconds(), total(st))
	row("RSS then, peak", "%.0f MiB, %.0f MiB", a.memory("VmRSS"), a.memory("VmHWM"))
	row("requests, bytes to be up to date", "%.0f (%.0f watches), %.1f MB", a.sum("weir_kube_requests_total"), a.sum("weir_kube_requests_total", `verb="watch"`), a.sum("weir_kube_received_bytes_total")/1e6)
	time.Sleep(10 * time.Second)
	row("RSS 10 s later", "%.0f MiB (Go heap %.0f MiB)", a.memory("VmRSS"), a.sum("go_memstats_heap_alloc_bytes")/(1<<20))

	times, err := timeChanges(ctx, w, a, s, changes)
	if err != nil {
		return err
	}
	slices.Sort(times)
	at := func(q float64) float64 { return times[int(q*float64(len(times)-1))].Seconds() * 1000 }
	row("policy change -> in the kernel (from the answer to the change)", "p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms", at(.5), at(.9), at(.99), at(1))

	bytes, cpu := a.sum("weir_kube_received_bytes_total"), a.cpu()
	lives, behind, err := churnPods(ctx, w, a, s, churn, rate)
	if err != nil {
		return err
	}
	row(fmt.Sprintf("pods that come and go, %v", churn), "%.0f/s, agent %.0f%% of a CPU, up to date %.0f ms after the last, %.0f kB/s watched",
		float64(lives)/churn.Seconds(), 100*(a.cpu()-cpu).Seconds()/churn.Seconds(), behind.Seconds()*1000, (a.sum("weir_kube_received_bytes_total")-bytes)/churn.Seconds()/1000)
	row("RSS after, peak of all", "%.0f MiB, %.0f MiB", a.memory("VmRSS"), a.memory("VmHWM"))
	return nil
}

func total(st status) (n int) {
	for _, k := range st.Objects.Kinds {
		n += k
	}
	return n
}

// define puts the definitions of policies, and waits until they are served.
func define(ctx context.Context, w *writer) error {
	docs, errs := api.Documents("", crds.Definitions())
	if len(errs) > 0 {
		return errs[0]
	}
	for i := range docs {
		text, err := docs[i].JSON()
		if err != nil {
			return err
		}
		if err := w.do(ctx, http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", rawJSON(text)); err != nil {
			return err
		}
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := w.do(ctx, http.MethodGet, "/apis/cilium.io/v2/ciliumnetworkpolicies?limit=1", nil)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

type rawJSON []byte

func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

// timeChanges changes policies that select pods of this node, one after
// another.
func timeChanges(ctx context.Context, w *writer, a *agent, s size, n int) (times []time.Duration, err error) {
	for i := range n {
		policy := 2 * (i % (min(s.own, s.policies) / 2))
		before, err := a.status()
		if err != nil {
			return nil, err
		}
		spec := ciliumPolicy(policy, 9000+i)["spec"]
		path := fmt.Sprintf("/apis/cilium.io/v2/namespaces/%s/ciliumnetworkpolicies/p-%d", namespaceOf(policy%s.namespaces), policy)
		if err := w.do(ctx, http.MethodPatch, path, object{"spec": spec}); err != nil {
			return nil, err
		}
		start := time.Now()
		if _, err := a.until(10*time.Second, func(st status) bool { return st.Policy.Revision > before.Policy.Revision && st.Policy.Realised }); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
		time.Sleep(5 * time.Millisecond)
	}
	return times, nil
}

// churnPods creates and deletes pods of other nodes at a rate, and tells how
// long after the last the agent had seen it all.
func churnPods(ctx context.Context, w *writer, a *agent, s size, d time.Duration, rate int) (done int, behind time.Duration, err error) {
	ticks := time.NewTicker(2 * time.Second / time.Duration(rate))
	defer ticks.Stop()
	errs := make(chan error, 1<<16)
	n := 0
	slots := make(chan struct{}, 32)
	for end := time.Now().Add(d); time.Now().Before(end); {
		<-ticks.C
		i := s.pods + n
		n++
		slots <- struct{}{}
		go func() {
			err := w.pod(ctx, s, i)
			if err == nil {
				err = w.deletePod(ctx, s, i)
			}
			<-slots
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			return 0, 0, err
		}
	}
	// One more tells the end: whoever has it has all the others.
	if err := w.pod(ctx, s, s.pods+n); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	_, err = a.until(time.Minute, func(st status) bool { return st.Objects.Kinds["Pod"] == s.pods+1 })
	return 2 * n, time.Since(start), err
}

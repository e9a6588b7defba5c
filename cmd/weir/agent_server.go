package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weirnet/weir/cni"
	"github.com/weirnet/weir/endpoint"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/kube"
)

// agentStatus is what /status answers, and `weir status -o json` prints.
type agentStatus struct {
	Node    string    `json:"node"`
	State   string    `json:"state"`
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Ready: everything that was read is enforced. Reasons tell why not.
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
	// Standby: it does not have the state, and why. Only objects are known then.
	Standby string `json:"standby,omitempty"`
	// Waited is the answer to --wait: empty when it is so.
	Waited  string          `json:"waited,omitempty"`
	Objects kube.Report     `json:"objects"`
	Policy  endpoint.Status `json:"policy"`
	Proxy   proxyStatus     `json:"proxy"`
	// Services is how pods' connections to services are translated.
	Services endpoint.ServicesStatus `json:"services"`
	Kernel   []flow.KernelCount      `json:"kernel"`
	Lost     lostStatus              `json:"lost"`
}

// lostStatus counts records that were not made or not read.
type lostStatus struct {
	Limited uint64 `json:"limited"`
	Full    uint64 `json:"full"`
	Readers uint64 `json:"readers"`
	Proxy   uint64 `json:"proxy"`
}

// source is where the agent's objects come from.
type source interface {
	Run(ctx context.Context, sink kube.Sink) error
	// Sync returns when all there is now was taken by the sink.
	Sync(ctx context.Context) error
	Report() kube.Report
	Collector() prometheus.Collector
}

// agentServer answers on the agent's socket and port.
type agentServer struct {
	agent    agentStatus // what does not change
	source   source
	manager  *endpoint.Manager
	kernel   func() (flow.KernelCounts, error)
	proxy    func() proxyStatus
	ring     *flow.Ring
	lost     *atomic.Uint64 // by slow readers of the ring
	registry *prometheus.Registry
	port     *net.TCPListener // of the metrics, or nil
	log      *slog.Logger
	names    nameLister
	services func() endpoint.ServicesStatus
	// podAt names the pod of an address, if there is one.
	podAt func(netip.Addr) (namespace, name string, ok bool)
}

// private is the API on the unix socket.
func (s *agentServer) private() http.Handler {
	mux := s.public()
	mux.HandleFunc("GET /status", s.serveStatus)
	mux.HandleFunc("GET /flows", s.serveFlows)
	mux.HandleFunc("GET /fqdn", s.serveNames)
	mux.HandleFunc("GET /readyz", s.serveReady)
	mux.HandleFunc("POST "+cni.PathAnnounce, s.serveAnnounce)
	mux.HandleFunc("POST "+cni.PathWithdraw, s.serveWithdraw)
	mux.HandleFunc("GET "+portPath, s.servePort)
	return mux
}

// public is what anybody on the node may read.
func (s *agentServer) public() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// listenUnix opens a socket, for root only.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err) // of a predecessor that was killed
	}
	// It gets its name when it has its mode.
	fresh := path + ".new"
	_ = os.Remove(fresh)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, errors.Join(err, l.Close()))
	}
	return l, nil
}

// serve answers until ctx is done. Those who follow are let go then. keep: a
// connection may be used again.
func serve(ctx context.Context, l net.Listener, h http.Handler, keep bool, log *slog.Logger) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var open sync.WaitGroup
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateHijacked, http.StateClosed:
			open.Done()
		}
	}
	server.SetKeepAlivesEnabled(keep)
	// Not Shutdown: it closes connections whose request is just being read.
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	if err := server.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	server.SetKeepAlivesEnabled(false) // which closes those that idle
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		open.Wait()
	}()
	select {
	case <-answered:
	case <-time.After(time.Second):
	}
	_ = server.Close()
	return nil
}

func (s *agentServer) status() agentStatus {
	st := s.agent
	st.Objects = s.source.Report()
	st.Policy = s.manager.Status()
	st.Proxy = s.proxy()
	st.Services = s.services()
	st.Lost.Readers, st.Lost.Proxy = s.lost.Load(), st.Proxy.RecordsLost
	counts, err := s.kernel()
	if err != nil {
		st.Reasons = append(st.Reasons, err.Error())
	}
	st.Kernel, st.Lost.Limited, st.Lost.Full = counts.Reasons, counts.Limited, counts.Full
	switch {
	case st.Policy.Started:
	case st.Policy.Inherited:
		st.Reasons = append(st.Reasons, "the first read of all objects is not in: what was in force before is, but no change since, and no new pod is under policy")
	default:
		st.Reasons = append(st.Reasons, "NOTHING IS ENFORCED on this node: the first read of all objects is not in")
	}
	st.Reasons = append(st.Reasons, sourceReasons(st.Objects)...)
	st.Reasons = append(st.Reasons, st.Policy.Errors...)
	if st.Policy.Started && !st.Policy.Realised && len(st.Policy.Errors) == 0 {
		st.Reasons = append(st.Reasons, "the kernel does not hold everything yet")
	}
	if why := st.Proxy.down(); why != "" {
		st.Reasons = append(st.Reasons, why)
	}
	st.Ready = len(st.Reasons) == 0
	return st
}

// serveStatus answers with the status; with wait=DURATION it first reads
// everything again and waits until that is enforced.
func (s *agentServer) serveStatus(w http.ResponseWriter, r *http.Request) {
	waited := ""
	if text := r.URL.Query().Get("wait"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), d)
		defer cancel()
		if err := s.wait(ctx); err != nil {
			waited = err.Error()
		}
	}
	st := s.status()
	st.Waited = waited
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(st) // the reader went away
}

// wait returns when all objects that there are now are enforced, or why they are not
// when ctx ends.
func (s *agentServer) wait(ctx context.Context) error {
	if err := s.source.Sync(ctx); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("the objects could not be read in time: %w", err)
		}
		return err
	}
	if err := s.manager.Wait(ctx); err != nil {
		return err
	}
	for {
		st := s.status()
		if st.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New(strings.Join(st.Reasons, "; "))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *agentServer) serveReady(w http.ResponseWriter, _ *http.Request) {
	answerReady(w, s.status())
}

// flowLine is one line of /flows: a record, or what a slow reader has lost.
type flowLine struct {
	*flow.Record
	Lost uint64 `json:"lost,omitempty"`
}

func (s *agentServer) serveFlows(w http.ResponseWriter, r *http.Request) {
	q, err := flow.ParseQuery(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(w)
	if err := control.Flush(); err != nil {
		return // the reader went away
	}
	enc := json.NewEncoder(w)
	if !q.Follow {
		for _, rec := range s.latest(r.Context(), q) {
			if enc.Encode(flowLine{Record: rec}) != nil {
				return
			}
		}
		return
	}
	_ = s.ring.Read(r.Context(), q, func(rec *flow.Record, lost uint64) error {
		if lost > 0 {
			s.lost.Add(lost)
		}
		if err := enc.Encode(flowLine{rec, lost}); err != nil {
			return err
		}
		return control.Flush()
	}) // an error means that the reader went away
}

// latest are the records that are there, by time: those of the kernel come to
// the ring a little later than those of the proxy.
func (s *agentServer) latest(ctx context.Context, q flow.Query) []*flow.Record {
	var list []*flow.Record
	_ = s.ring.Read(ctx, q, func(rec *flow.Record, _ uint64) error {
		if rec != nil {
			kept := *rec
			list = append(list, &kept)
		}
		return nil
	}) // the query was compiled before, and the function returns no error
	slices.SortStableFunc(list, func(a, b *flow.Record) int { return a.Time.Compare(b.Time) })
	return list
}

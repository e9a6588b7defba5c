package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/kube"
	"github.com/weirnet/weir/policy"
)

// lockEvery is how often an agent that waits looks whether the state is free:
// so long nobody writes tables.
const lockEvery = 20 * time.Millisecond

// Values of --proxy.
const (
	proxyStart    = "start"
	proxyExternal = "external"
)

// gate is what a source hands its objects to before there is a manager: it
// waits. The source goes on reading, and keeps what has changed meanwhile.
type gate struct {
	open chan struct{}
	sink kube.Sink // once open is closed
}

// Submit implements kube.Sink.
func (g *gate) Submit(ctx context.Context, changes []policy.Change) error {
	select {
	case <-g.open:
		return g.sink.Submit(ctx, changes)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// standby is an agent before it has the state: it reads objects and answers on
// the socket of its own. Once it has the state it hands both on.
type standby struct {
	agent  agentStatus // what does not change
	source source
	port   *net.TCPListener // of the agent that had the state, or nil
	read   func()           // starts reading, once
	gate   gate
	lacks  error                  // rights that it will need
	holder atomic.Pointer[holder] // who has the state; nil: nobody was in the way yet
	active atomic.Pointer[http.Handler]
}

// run is the agent: it waits for its turn, where it may have to, and enforces.
func (o *agentOptions) run(ctx context.Context) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	s := &standby{gate: gate{open: make(chan struct{})}, agent: agentStatus{
		Node: o.node, State: string(o.state), PID: os.Getpid(), Version: version, Started: time.Now(),
	}}
	if s.source, err = o.source(log); err != nil {
		return err
	}
	if o.standby {
		s.lacks = tryRights()
	}
	group, ctx := errgroup.WithContext(ctx)
	s.read = sync.OnceFunc(func() {
		group.Go(func() error { return s.source.Run(ctx, &s.gate) })
	})
	if o.objects == "" {
		s.read() // but a directory's last valid texts are part of the state
	}
	if o.ownSocket != "" {
		own, err := listenUnix(o.ownSocket)
		if err != nil {
			return err
		}
		group.Go(func() error { return serve(ctx, own, s, true, log) })
	}
	group.Go(func() error {
		release, err := s.take(ctx, o, log)
		if err != nil || release == nil {
			return err
		}
		defer release()
		return o.enforce(ctx, s, log)
	})
	return group.Wait()
}

// hand gives what came to the standby to what enforces.
func (s *standby) hand(answers http.Handler, objects kube.Sink) {
	s.active.Store(&answers)
	s.gate.sink = objects
	close(s.gate.open)
	s.read()
}

// take takes the state as soon as no other agent has it, or fails where one has
// and this one is not to stand by. nil: ctx has ended.
func (s *standby) take(ctx context.Context, o *agentOptions, log *slog.Logger) (release func(), err error) {
	said := holder{}
	for began := time.Now(); ; {
		release, _, err := o.state.lock(o.node)
		held := (*errHeld)(nil)
		if !errors.As(err, &held) || !o.standby {
			if err == nil && said != (holder{}) {
				log.Info("taking over", "from", said.String(), "waited", time.Since(began))
			}
			return release, err
		}
		if held.holder.pid != 0 && held.holder != said { // 0: it is just writing that
			said = held.holder
			s.holder.Store(&said)
			log.Info("standing by: another agent has the state", "state", string(o.state), "holder", said.String())
			s.inherit(ctx, o, log)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(lockEvery):
		}
	}
}

// ServeHTTP answers as the agent that has the state does, where that is this
// one.
func (s *standby) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if active := s.active.Load(); active != nil {
		(*active).ServeHTTP(w, r)
		return
	}
	switch r.URL.Path {
	case "/healthz":
		fmt.Fprintln(w, "ok")
	case "/readyz":
		answerReady(w, s.status())
	case "/status":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.status()) // the reader went away
	default:
		http.Error(w, "this agent stands by: ask the one that has the state", http.StatusServiceUnavailable)
	}
}

// status of an agent that stands by: it is ready once it could take over.
func (s *standby) status() agentStatus {
	st := s.agent
	st.Standby = "starting"
	if h := s.holder.Load(); h != nil {
		st.Standby = "standing by for " + h.String()
	}
	st.Objects = s.source.Report()
	st.Reasons = sourceReasons(st.Objects)
	if !st.Objects.Complete && len(st.Reasons) == 0 {
		st.Reasons = []string{"the first read of all objects is not in"}
	}
	if s.lacks != nil {
		st.Reasons = append(st.Reasons, strings.Split(s.lacks.Error(), "\n")...)
	}
	st.Ready = len(st.Reasons) == 0
	return st
}

// sourceReasons tells what of the objects keeps an agent from being ready.
func sourceReasons(objects kube.Report) (reasons []string) {
	if !objects.Complete {
		for _, p := range objects.Problems {
			if !p.Fallback && (p.Kind == kube.BrokenFile || p.Kind == kube.BrokenObject) {
				reasons = append(reasons, "never valid: "+p.String())
			}
		}
	}
	for _, w := range objects.Watches {
		// A server that is away for a while takes nothing out of force; a right
		// that is missing stays so until somebody is told.
		if w.Denied || !w.Known && !w.Missing {
			reasons = append(reasons, w.String())
		}
	}
	return reasons
}

func answerReady(w http.ResponseWriter, st agentStatus) {
	if !st.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(st.Reasons, "\n"))
		return
	}
	fmt.Fprintln(w, "ok")
}

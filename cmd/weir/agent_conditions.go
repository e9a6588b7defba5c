package main

import (
	"context"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/deploy/crds"
	"github.com/weirnet/weir/kube"
)

// serviceNamespace is where Kubernetes tells a container the namespace of its pod.
const serviceNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// teller tells people what became of their policies: in the status, and at the API
// server. With a directory of objects there is none, and nil instead.
type teller struct {
	doubts      *kube.Doubts
	conditions  *kube.Conditions
	definitions *kube.Definitions
}

func (o *agentOptions) teller(log *slog.Logger) (*teller, error) {
	t := &teller{doubts: kube.NewDoubts()}
	if o.objects != "" {
		return t, nil
	}
	config, err := kube.ClusterConfig(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "weir-agent/" + version
	// A node has one agent that enforces, and its successor goes on with the Lease.
	t.conditions, err = kube.NewConditions(kube.ConditionsOptions{Config: config, Namespace: ownNamespace(), Identity: o.node, Log: log, Doubts: t.doubts})
	if err != nil {
		return nil, err
	}
	t.definitions, err = kube.NewDefinitions(config, crds.PartOf, crds.PartOfValue)
	return t, err
}

// ownNamespace is Weir's namespace: that of its pods, or kube-system where it
// runs on the host.
func ownNamespace() string {
	if text, err := os.ReadFile(serviceNamespace); err == nil {
		if name := strings.TrimSpace(string(text)); name != "" {
			return name
		}
	}
	return "kube-system"
}

// after returns a sink that notes what next has taken.
func (t *teller) after(next kube.Sink) kube.Sink {
	if t.conditions != nil {
		next = t.conditions.After(next)
	}
	return t.doubts.After(next)
}

// run tells until ctx is done.
func (t *teller) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.doubts.Run(ctx) })
	if t.conditions != nil {
		group.Go(func() error { return t.conditions.Run(ctx) })
		group.Go(func() error { return t.definitions.Run(ctx) })
	}
	return group.Wait()
}

// noted returns a source whose report says what people must know besides.
func (t *teller) noted(s source) source { return notedSource{s, t} }

type notedSource struct {
	source
	teller *teller
}

// Report implements source.
func (s notedSource) Report() kube.Report {
	r := s.source.Report()
	r.Problems = append(r.Problems, s.teller.doubts.Problems()...)
	if s.teller.definitions != nil {
		r.Notes = append(r.Notes, s.teller.definitions.Notes()...)
	}
	return r
}

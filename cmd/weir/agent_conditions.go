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

// teller tells people, at the API server, what became of their policies. With a
// directory of objects there is nobody to tell; the nil teller tells nothing.
type teller struct {
	conditions  *kube.Conditions
	definitions *kube.Definitions
}

func (o *agentOptions) teller(log *slog.Logger) (*teller, error) {
	if o.objects != "" {
		return nil, nil
	}
	config, err := kube.ClusterConfig(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "weir-agent/" + version
	t := &teller{}
	// A node has one agent that enforces, and its successor goes on with the Lease.
	t.conditions, err = kube.NewConditions(kube.ConditionsOptions{Config: config, Namespace: ownNamespace(), Identity: o.node, Log: log})
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
	if t == nil {
		return next
	}
	return t.conditions.After(next)
}

// run tells until ctx is done.
func (t *teller) run(ctx context.Context) error {
	if t == nil {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.conditions.Run(ctx) })
	group.Go(func() error { return t.definitions.Run(ctx) })
	return group.Wait()
}

// noted returns a source whose report says what people must know besides.
func (t *teller) noted(s source) source {
	if t == nil {
		return s
	}
	return notedSource{s, t}
}

type notedSource struct {
	source
	teller *teller
}

// Report implements source.
func (s notedSource) Report() kube.Report {
	r := s.source.Report()
	r.Notes = append(r.Notes, s.teller.definitions.Notes()...)
	return r
}

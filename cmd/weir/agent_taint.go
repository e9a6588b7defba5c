package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/weirnet/weir/kube"
)

// taintEvery is how often it is looked whether the node's taint can go, or was
// tried to take it off.
const taintEvery = 500 * time.Millisecond

// untaint takes the start-up taint off the node once all is enforced. Pods that
// wait for that are scheduled here then.
func (o *agentOptions) untaint(ctx context.Context, ready func() bool, log *slog.Logger) error {
	if o.taint == "" {
		return nil
	}
	config, err := kube.ClusterConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	config.UserAgent = "weir-agent/" + version
	said := ""
	for {
		if ready() {
			err := kube.Untaint(ctx, config, o.node, o.taint)
			if err == nil {
				log.Info("the node has no start-up taint any more", "taint", o.taint)
				return nil
			}
			if ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				log.Error("no pods are scheduled here yet", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(taintEvery):
		}
	}
}

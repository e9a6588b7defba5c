package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/weirnet/weir/kube"
)

// checkSource checks the flags that say where objects come from.
func (o *agentOptions) checkSource() error {
	switch {
	case o.objects != "" && o.taint != "":
		return errors.New("--startup-taint needs an API server, and there is none with --objects")
	case o.objects != "" && o.kubeconfig != "":
		return errors.New("--objects and --kubeconfig exclude each other: objects come from one place")
	case o.objects != "":
		if info, err := os.Stat(o.objects); err != nil {
			return fmt.Errorf("directory of objects: %w", err)
		} else if !info.IsDir() {
			return fmt.Errorf("directory of objects: %s is no directory", o.objects)
		}
		return nil
	}
	_, err := kube.ClusterConfig(o.kubeconfig)
	if errors.Is(err, kube.ErrNoCluster) {
		return errors.New("no source of objects: give --kubeconfig FILE or --objects DIR (without them the agent connects as the service account of its pod, and this is none)")
	}
	return err
}

// source opens the source of objects.
func (o *agentOptions) source(log *slog.Logger) (source, error) {
	if o.objects != "" {
		return kube.NewDir(o.objects, filepath.Join(o.state.dir(), "objects"), log), nil
	}
	config, err := kube.ClusterConfig(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "weir-agent/" + version
	return kube.NewCluster(config, log)
}

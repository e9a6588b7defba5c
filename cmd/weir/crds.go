package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/deploy/crds"
	"github.com/weirnet/weir/kube"
)

const crdsLong = `The definitions of CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and
CiliumCIDRGroup as Weir has them, and the admission policies that refuse unknown
fields by name.

They are for clusters without Cilium's own: where those are installed Weir reads
objects of theirs, and these are never applied over them. Weir does not delete
them either: with a definition all of its objects go.`

// newCRDsCommand is `weir crds`.
func newCRDsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "crds",
		Short: "Print or apply the custom resources that policies are kept in",
		Long:  crdsLong,
		Args:  cobra.NoArgs,
	}
	var kubeconfig string
	printing := &cobra.Command{
		Use:     "print",
		Short:   "Print them as YAML",
		Example: "  weir crds print | kubectl apply --server-side -f -",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(append(crds.Definitions(), crds.Admission()...))
			return err
		},
	}
	applying := &cobra.Command{
		Use:   "apply",
		Short: "Apply them to the cluster, but not over others",
		Long: `Apply applies the definitions server-side, as the field manager weir and without
force, then the admission policies. If a definition of one of the names is there
and not Weir's, nothing is applied.

Exit status: 0 applied, 1 others are there, 2 it failed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubeconfig == "" {
				kubeconfig = os.Getenv("KUBECONFIG")
			}
			return applyCRDs(cmd, kubeconfig)
		},
	}
	applying.Flags().StringVar(&kubeconfig, "kubeconfig", "", "`file` to connect with (default: $KUBECONFIG, or the pod's service account)")
	cmd.AddCommand(printing, applying)
	return cmd
}

func applyCRDs(cmd *cobra.Command, kubeconfig string) error {
	config, err := kube.ClusterConfig(kubeconfig)
	if err != nil {
		return err
	}
	definitions, err := kube.NewDefinitions(config, crds.PartOf, crds.PartOfValue)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(withContext(cmd.Context()), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// All at once: an admission policy says nothing of others' definitions.
	err = definitions.Apply(ctx, append(crds.Definitions(), crds.Admission()...), func(object string) {
		fmt.Fprintln(cmd.OutOrStdout(), object, "applied")
	})
	if taken := (*kube.ForeignError)(nil); errors.As(err, &taken) {
		fmt.Fprintln(cmd.ErrOrStderr(), "weir:", taken)
		return exitCode(1)
	}
	return err
}

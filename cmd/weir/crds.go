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
objects of theirs, and these are never applied over them. The admission policies
hold where a definition is Weir's, and say nothing once another is in its place.
Weir does not delete definitions: with one all of its objects go.`

// newCRDsCommand is `weir crds`.
func newCRDsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "crds",
		Short: "Print or apply the custom resources that policies are kept in",
		Long:  crdsLong,
		Args:  cobra.NoArgs,
	}
	var kubeconfig string
	var force bool
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
		Long: `Apply applies the definitions server-side, as the field manager weir, then the
admission policies. If a definition of one of the names is there and not Weir's,
nothing is applied.

Nor is it where somebody else has set a field of Weir's to another value, as
kubectl apply --server-side with the files of another version does: he is named,
and --force-conflicts takes his fields over. What has the same value belongs to
both, and is no conflict.

Exit status: 0 applied, 1 others are there, 2 it failed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubeconfig == "" {
				kubeconfig = os.Getenv("KUBECONFIG")
			}
			return applyCRDs(cmd, kubeconfig, force)
		},
	}
	applying.Flags().StringVar(&kubeconfig, "kubeconfig", "", "`file` to connect with (default: $KUBECONFIG, or the pod's service account)")
	applying.Flags().BoolVar(&force, "force-conflicts", false, "take over fields of Weir's own objects that others have set; never others' objects")
	cmd.AddCommand(printing, applying)
	return cmd
}

func applyCRDs(cmd *cobra.Command, kubeconfig string, force bool) error {
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
	// All at once, so that all of it is asked for before any is applied.
	err = definitions.Apply(ctx, append(crds.Definitions(), crds.Admission()...), force, func(object string) {
		fmt.Fprintln(cmd.OutOrStdout(), object, "applied")
	})
	if taken := (*kube.ForeignError)(nil); errors.As(err, &taken) {
		fmt.Fprintln(cmd.ErrOrStderr(), "weir:", taken)
		return exitCode(1)
	}
	if conflict := (*kube.ConflictError)(nil); errors.As(err, &conflict) {
		return fmt.Errorf("%w (--force-conflicts takes these fields over)", err)
	}
	return err
}

// Command weir enforces Kubernetes and Cilium network policies on this node.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// version is set when the program is linked.
var version = "dev"

func main() { os.Exit(run(os.Args[1:])) }

// run returns the exit status: 0 done, 1 the answer is no (a policy is
// refused, the agent is not ready), 2 the call itself was wrong or failed.
func run(args []string) int {
	if calledAsPlugin(args) {
		return runPlugin(context.Background())
	}
	root := newRoot()
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		if code := exitCode(0); errors.As(err, &code) {
			return int(code)
		}
		fmt.Fprintln(os.Stderr, "weir:", err)
		return 2
	}
	return 0
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "weir",
		Short:         "Network policy for Kubernetes: L3/L4 in the kernel, L7 in one proxy per node",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		// It works, and is no verb of Weir's.
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetVersionTemplate("weir {{.Version}}\n")
	root.AddCommand(commands()...)
	return root
}

// newVersionCommand is `weir version`.
func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "weir", version)
			return err
		},
	}
}

// exitCode ends the program with that status; what there was to say is said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// commands lists the verbs in the order help shows them.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newAgentCommand(),
		newStatusCommand(),
		newFlowsCommand(),
		newFqdnCommand(),
		newCNICommand(),
		newUninstallCommand(),
		newProxyCommand(),
		newPolicyCommand(),
		newCRDsCommand(),
		newDemoCommand(),
		newProbeServicesCommand(),
		newVersionCommand(),
	}
}

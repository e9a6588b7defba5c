// Command cluster brings a real Kubernetes cluster up on this machine, and
// what can be done with one (see package cluster).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/test/cluster"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	var ended programEnded
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		// It has said why.
		return int(ended)
	}
	fmt.Fprintln(os.Stderr, "cluster:", err)
	return 1
}

// flags are those of more than one command.
type flags struct {
	name, cache string
}

func command() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes cluster on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
		// kubectl parses its own flags, and those before it are ours.
		TraverseChildren: true,
	}
	root.PersistentFlags().StringVar(&f.name, "name", cluster.DefaultName, "name of the cluster")
	root.PersistentFlags().StringVar(&f.cache, "cache", "", "where built programs are kept (WEIR_KUBERNETES, or in the user's cache directory)")
	root.AddCommand(f.build(), f.up(), f.down(), f.status(), f.env(), f.kubectl(), f.exec(), f.load(), f.conformance())
	return root
}

func (f *flags) cacheDir() (string, error) {
	if f.cache != "" {
		return f.cache, nil
	}
	return cluster.DefaultCache()
}

func (f *flags) build() *cobra.Command {
	parts := map[string]func(context.Context, string, io.Writer) error{
		"cluster": cluster.Build, "apiserver": cluster.BuildServer, "conformance": cluster.BuildSuite,
	}
	return &cobra.Command{
		Use: "build [cluster|apiserver|conformance]", Short: "Build programs and images into the cache (no privilege needed)",
		Long: "Build what a cluster needs, an API server with etcd and kubectl only, or Kubernetes' own tests\ninto the cache. What is there is kept.",
		Args: cobra.MaximumNArgs(1), ValidArgs: slices.Sorted(maps.Keys(parts)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cache, err := f.cacheDir()
			if err != nil {
				return err
			}
			build := cluster.Build
			if len(args) > 0 && parts[args[0]] == nil {
				return fmt.Errorf("build %q: there are %s", args[0], strings.Join(cmd.ValidArgs, ", "))
			} else if len(args) > 0 {
				build = parts[args[0]]
			}
			return build(cmd.Context(), cache, cmd.OutOrStdout())
		},
	}
}

func (f *flags) up() *cobra.Command {
	var config cluster.Config
	cmd := &cobra.Command{
		Use: "up", Short: "Bring the cluster up from what was built", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := f.cacheDir()
			if err != nil {
				return err
			}
			config.Name = f.name
			c, err := cluster.Up(cmd.Context(), config, cache, cmd.OutOrStdout())
			if errors.Is(err, cluster.ErrOther) {
				return fmt.Errorf("%w: bring it down first, or give this one a --name", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "export KUBECONFIG=%s\n", c.Kubeconfig())
			return nil
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&config.NodeCount, "nodes", 1, "how many nodes")
	fl.StringVar(&config.CNI, "cni", "ptp", "CNI plugin: ptp or bridge")
	fl.BoolVar(&config.DualStack, "dual-stack", false, "IPv6 as well")
	fl.StringVar(&config.ProxyMode, "proxy-mode", "iptables", "kube-proxy's mode: iptables or nftables")
	fl.StringVar(&config.DNSUpstream, "dns-upstream", "", "server for names outside of the cluster")
	fl.StringVar(&config.Controllers, "controllers", "*", "the controller manager's --controllers")
	fl.BoolVar(&config.NoUserNamespaces, "no-user-namespaces", false, "nodes can make no user namespaces")
	fl.IntVar(&config.Port, "port", 0, "API server's port on the host's loopback address (0: any)")
	return cmd
}

func (f *flags) down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the cluster and remove all of it", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return cluster.Down(f.name) },
	}
}

func (f *flags) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "What runs, and where", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Open(f.name)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			state := map[bool]string{true: "up", false: "NOT COMPLETE"}
			alive := map[bool]string{true: "runs", false: "ENDED"}
			fmt.Fprintf(out, "cluster %s: %s\n  nodes %d, CNI %s, dual stack %v, kube-proxy %s\n  kubeconfig %s\n",
				c.Name, state[c.Complete()], c.NodeCount, c.CNI, c.DualStack, c.ProxyMode, c.Kubeconfig())
			fmt.Fprintf(out, "  %-8s %-6s pid %d, network namespace %s.control\n", "control", alive[c.Control.Alive()], c.Control.Pid, c.Name)
			for _, n := range c.Nodes {
				fmt.Fprintf(out, "  %-8s %-6s pid %d, network namespace %s, %v, pods %v\n", n.Name, alive[n.Alive()], n.Pid, n.Netns, n.Addrs, n.PodCIDRs)
			}
			if !c.Complete() {
				return fmt.Errorf("cluster %s is not complete: logs are in %s", c.Name, c.Dir())
			}
			pods, err := c.Kubectl(cmd.Context(), "", "get", "nodes,pods", "--all-namespaces", "--output=wide")
			if err != nil {
				return err
			}
			fmt.Fprint(out, pods)
			return nil
		},
	}
}

func (f *flags) env() *cobra.Command {
	return &cobra.Command{
		Use: "env", Short: "What a shell evaluates to use the cluster: KUBECONFIG, and kubectl in PATH", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Open(f.name)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "export KUBECONFIG=%s\nexport PATH=\"%s:$PATH\"\n", c.Kubeconfig(), c.Cache)
			return nil
		},
	}
}

func (f *flags) kubectl() *cobra.Command {
	return &cobra.Command{
		Use: "kubectl ARGUMENTS", Short: "kubectl on the cluster", DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Open(f.name)
			if err != nil {
				return err
			}
			k := exec.CommandContext(cmd.Context(), c.Program("kubectl"), args...)
			k.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
			return attached(k)
		},
	}
}

func (f *flags) exec() *cobra.Command {
	return &cobra.Command{
		Use: "exec control|NODE -- PROGRAM ARGUMENTS", Short: "Run a program inside a machine of the cluster", Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := cluster.Open(f.name)
			if err != nil {
				return err
			}
			if args[0] == "control" {
				return attached(c.Control.Command(args[1], args[2:]...))
			}
			for _, n := range c.Nodes {
				if n.Name == args[0] {
					return attached(n.Command(args[1], args[2:]...))
				}
			}
			return fmt.Errorf("no machine %q: there are control and node1 to node%d", args[0], c.NodeCount)
		},
	}
}

func (f *flags) load() *cobra.Command {
	return &cobra.Command{
		Use: "load ARCHIVE...", Short: "Load images of docker-archives into every node", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Open(f.name)
			if err != nil {
				return err
			}
			for _, archive := range args {
				if err := c.Load(cmd.Context(), archive); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (f *flags) conformance() *cobra.Command {
	var s cluster.Suite
	cmd := &cobra.Command{
		Use: "conformance", Short: "Kubernetes' own e2e.test against the cluster", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Open(f.name)
			if err != nil {
				return err
			}
			return attached(c.Conformance(cmd.Context(), s))
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&s.Focus, "focus", "NetworkPolicy", "specs to run, a regular expression")
	fl.StringVar(&s.Skip, "skip", "SCTPConnectivity", "specs to leave out, a regular expression")
	fl.IntVar(&s.Parallel, "parallel", 2, "how many specs at a time")
	fl.DurationVar(&s.Timeout, "timeout", 0, "for all of it (0: two hours)")
	fl.StringVar(&s.Report, "report", "", "JUnit file to write")
	fl.BoolVar(&s.DryRun, "dry-run", false, "list the specs only")
	return cmd
}

// attached runs a program with this one's standard files.
func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return programEnded(exit.ExitCode())
	}
	return err
}

// programEnded is the exit code of a program that was run for the caller.
type programEnded int

func (p programEnded) Error() string { return fmt.Sprintf("exit code %d", int(p)) }

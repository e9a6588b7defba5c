package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/cni"
	"github.com/weirnet/weir/endpoint"
	"github.com/weirnet/weir/policy"
)

const cniLong = `Cni is called by a container runtime, as the last plugin of a chain: it passes on
what the plugins before it did, and lets a pod start once the pod's policy is in
force. It is optional. Without it, too, a pod is under policy from its first
packet on while an agent runs; with it no pod starts while none does, and of
several pods that start together none is under another's policy for a moment.

Its entry in the configuration, with the defaults:

  {"type": "weir", "state": "weir", "timeout": "10s", "onTimeout": "fail", "noAgent": "fail"}

onTimeout says what becomes of a pod whose policy is not in force by then, noAgent
of one where no agent answers: with "fail" it does not start, and kubelet tries
again; with "allow" it starts all the same.

The program does the same when it is called without arguments, as runtimes call
plugins.`

// newCNICommand is `weir cni`.
func newCNICommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cni",
		Short: "Let pods start once their policy is in force (a chained CNI plugin)",
		Long:  cniLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv("CNI_COMMAND") == "" {
				return errors.New("this is for container runtimes to call; see weir cni install")
			}
			return exitCode(runPlugin(cmd.Context()))
		},
	}
	cmd.AddCommand(newCNIInstallCommand(), newCNIUninstallCommand())
	return cmd
}

// calledAsPlugin tells whether a container runtime has called the program.
func calledAsPlugin(args []string) bool { return len(args) == 0 && os.Getenv("CNI_COMMAND") != "" }

// runPlugin returns the exit status.
func runPlugin(ctx context.Context) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if !cni.Run(ctx, cni.Env{Getenv: os.Getenv, In: os.Stdin, Out: os.Stdout}) {
		return 1
	}
	return 0
}

// cniDirs are where a runtime looks.
type cniDirs struct{ conf, bin string }

func (d *cniDirs) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.conf, "conf-dir", "/etc/cni/net.d", "`directory` of CNI configurations")
	cmd.Flags().StringVar(&d.bin, "bin-dir", "/opt/cni/bin", "`directory` of CNI plugins")
}

func newCNIInstallCommand() *cobra.Command {
	var d cniDirs
	var o cni.Options
	var watch time.Duration
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Add the plugin to the node's CNI configuration",
		Long: `Install puts this program among the CNI plugins and appends it to the configuration
that the runtime takes, which is the first by name. All of it happens at once, and
doing it again changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			for {
				changed, err := cni.Install(d.conf, d.bin, "/proc/self/exe", o)
				if changed && err == nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "weir: the CNI plugin is installed")
				}
				if watch == 0 || err != nil && !errors.Is(err, cni.ErrNoConfig) {
					return err
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(watch):
				}
			}
		},
	}
	d.flags(cmd)
	f := cmd.Flags()
	stateFlag(cmd, (*state)(&o.State))
	f.StringVar(&o.Timeout, "timeout", cni.DefaultTimeout.String(), "how long a pod's start waits for its policy")
	f.StringVar(&o.OnTimeout, "on-timeout", cni.Fail, "what becomes of a pod then: fail or allow")
	f.StringVar(&o.NoAgent, "no-agent", cni.Fail, "what becomes of a pod where no agent answers: fail or allow")
	f.DurationVar(&watch, "watch", 0, "look every so often whether it is still there, until stopped: other plugins may write the configuration anew; 0: once")
	return cmd
}

func newCNIUninstallCommand() *cobra.Command {
	var d cniDirs
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the plugin out of the node's CNI configuration",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return cni.Uninstall(d.conf, d.bin) },
	}
	d.flags(cmd)
	return cmd
}

// maxAnnounced is how long one may wait for an answer.
const maxAnnounced = time.Minute

// serveAnnounce answers once the policy of a pod that starts is in force.
func (s *agentServer) serveAnnounce(w http.ResponseWriter, r *http.Request) {
	said, ok := readAnnouncement(w, r)
	if !ok {
		return
	}
	wait := maxAnnounced
	if text := r.URL.Query().Get("wait"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		wait = min(wait, d)
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	err := s.manager.Announce(ctx, endpoint.Announcement{Pod: podName(said), Addresses: said.Addresses})
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// serveWithdraw forgets what was announced of a pod.
func (s *agentServer) serveWithdraw(w http.ResponseWriter, r *http.Request) {
	said, ok := readAnnouncement(w, r)
	if !ok {
		return
	}
	if err := s.manager.Withdraw(r.Context(), podName(said)); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

func readAnnouncement(w http.ResponseWriter, r *http.Request) (said cni.Announcement, ok bool) {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&said)
	if err == nil && (said.Namespace == "" || said.Name == "") {
		err = errors.New("no pod is named")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return said, err == nil
}

func podName(a cni.Announcement) policy.PodName {
	return policy.PodName{Namespace: a.Namespace, Name: a.Name, UID: a.UID}
}

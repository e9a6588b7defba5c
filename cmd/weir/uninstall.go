package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/redirect"
)

const uninstallLong = `Uninstall removes all that an agent left on this machine under the name of its
state: the programs on the pods' interfaces and sockets, the pinned maps, the proxy with its
interfaces and namespaces, sockets and the run directory. From then on nothing
is enforced.

Call it in the network namespace the agent ran in. Doing it again, or where
nothing was ever installed, does no harm.`

// newUninstallCommand is `weir uninstall`.
func newUninstallCommand() *cobra.Command {
	var s state
	var o uninstallOptions
	var yes bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything Weir left on this node",
		Long:  uninstallLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(s.check(), o.pins.check()); err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errors.New("uninstalling needs root")
			}
			if err := enterHostMounts(); err != nil {
				return err
			}
			if !yes && isTerminal(os.Stdin) {
				if !confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Stop enforcing policy and remove state %s from this node?", s)) {
					return exitCode(1)
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := uninstall(ctx, s, o, cmd.ErrOrStderr()); err != nil || !o.stay {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "everything is removed from this node")
			<-ctx.Done()
			return nil
		},
	}
	stateFlag(cmd, &s)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask (where there is no terminal it does not ask either)")
	pinsFlag(cmd, &o.pins)
	cmd.Flags().BoolVar(&o.force, "force", false, "stop an agent that is running")
	cmd.Flags().DurationVar(&o.wait, "wait", 0, "wait so long for an agent that is running to end")
	cmd.Flags().BoolVar(&o.stay, "stay", false, "do not end when all is done: for a DaemonSet")
	return cmd
}

func confirm(in io.Reader, out io.Writer, question string) bool {
	fmt.Fprintf(out, "%s [y/N] ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	return err == nil && strings.EqualFold(strings.TrimSpace(answer), "y")
}

// uninstallOptions are the flags of uninstall.
type uninstallOptions struct {
	pins        pinsRoot
	force, stay bool
	wait        time.Duration
}

func uninstall(ctx context.Context, s state, o uninstallOptions, errOut io.Writer) error {
	release, left, err := s.lock("being-uninstalled")
	held := (*errHeld)(nil)
	for end := time.Now().Add(o.wait); errors.As(err, &held) && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(lockEvery)
		held = nil
		release, left, err = s.lock("being-uninstalled")
	}
	if held != nil {
		if !o.force {
			return fmt.Errorf("%w: stop it first, or use --force", err)
		}
		if err := stopAgent(held); err != nil {
			return err
		}
		release, left, err = s.lock("being-uninstalled")
	}
	if err != nil {
		return err
	}
	defer release()
	if own := networkNamespace(); left.netns != 0 && own != 0 && left.netns != own {
		fmt.Fprintf(errOut, "weir: the agent of state %s ran in another network namespace; interfaces in there are not removed\n", s)
	}
	// Programs first: nothing is sent to a proxy that is about to go.
	failed := bpf.Remove(o.pins.dir(s))
	failed = errors.Join(failed, redirect.Remove(ctx, string(s), s.dir(), 0))
	failed = errors.Join(failed, o.pins.remove(s))
	if failed != nil {
		return fmt.Errorf("not everything could be removed: %w", failed)
	}
	if err := os.RemoveAll(s.dir()); err != nil {
		return fmt.Errorf("remove the run directory: %w", err)
	}
	// The parent is shared with other states, and may be mounted in a container.
	err = os.Remove(filepath.Dir(s.dir()))
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove the run directory: %w", err)
	}
	return nil
}

// stopAgent ends the process that holds a state.
func stopAgent(held *errHeld) error {
	pid := held.holder.pid
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // just gone
	}
	if err != nil {
		return fmt.Errorf("stop the agent with pid %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, signal, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return fmt.Errorf("stop the agent with pid %d: %w", pid, err)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			n, err := unix.Poll(poll, int(time.Until(end).Milliseconds()))
			if n > 0 {
				return nil
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for the agent with pid %d: %w", pid, err)
			}
		}
	}
	return fmt.Errorf("the agent with pid %d does not end", pid)
}

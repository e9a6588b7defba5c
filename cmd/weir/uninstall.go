package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
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
	var yes, force bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything Weir left on this node",
		Long:  uninstallLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
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
			return uninstall(cmd.Context(), s, force, cmd.ErrOrStderr())
		},
	}
	stateFlag(cmd, &s)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask (where there is no terminal it does not ask either)")
	cmd.Flags().BoolVar(&force, "force", false, "stop an agent that is running")
	return cmd
}

func confirm(in io.Reader, out io.Writer, question string) bool {
	fmt.Fprintf(out, "%s [y/N] ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	return err == nil && strings.EqualFold(strings.TrimSpace(answer), "y")
}

func uninstall(ctx context.Context, s state, force bool, errOut io.Writer) error {
	release, left, err := s.lock("being-uninstalled")
	if held := (*errHeld)(nil); errors.As(err, &held) {
		if !force {
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
	failed := bpf.Remove(s.pins())
	failed = errors.Join(failed, redirect.Remove(ctx, string(s), s.dir(), 0))
	failed = errors.Join(failed, bpf.UnmountPins(s.pins()))
	if failed != nil {
		return fmt.Errorf("not everything could be removed: %w", failed)
	}
	if err := os.RemoveAll(s.dir()); err != nil {
		return fmt.Errorf("remove the run directory: %w", err)
	}
	// The parent is shared with other states.
	if err := os.Remove(filepath.Dir(s.dir())); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
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

package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/redirect"
)

const replaceLong = `Replace starts a proxy of this binary beside the one that runs, and returns when
it has the new connections. It gets idle connections at once, and the others when
they come to the end of a message; the old proxy ends with the last of them, or
when its time is up (weir agent --proxy-drain). weir status shows how far that is.

No request is lost and no connection is cut by that. If the new proxy does not
come up the old one stays. The agent does it by itself when it is started from
another binary than the running proxy.`

// replace is ` + "`weir proxy replace`" + `.
func (f *proxyFlags) replace(cmd *cobra.Command) error {
	if err := f.state.check(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("replacing the proxy needs root")
	}
	if err := enterHostMounts(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(withContext(cmd.Context()), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	// Without an agent nobody would send it anything.
	if _, _, err := askOnce(ctx, agentSocket(f.state.socket()), url.Values{}); err != nil {
		return err
	}
	command := redirect.Command(string(f.state), f.state.dir())
	place, err := redirect.Start(f.state.dir(), append(command, f.options()...))
	if err != nil {
		return err
	}
	for {
		st, _, err := askOnce(ctx, agentSocket(f.state.socket()), url.Values{})
		if err == nil && st.Proxy.Place >= place {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "generation %d has the new connections\n", st.Proxy.Generation)
			return errors.Join(err, st.Proxy.others(cmd.OutOrStdout()))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new proxy does not have the connections within %v; the old one goes on (see %s): %w",
				f.timeout, redirect.LogPath(f.state.dir()), errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/redirect"
)

// strangerPatience is how long a proxy may be without new flows before it counts
// as ready nevertheless: an agent of another version may not know how to give it
// any, and it is ready for the one that comes with it.
const strangerPatience = 30 * time.Second

const proxyReadyLong = `Ready tells whether the proxy that was started last has the new connections. It is
for a probe of the container that runs it: as long as it has not, the pod that it
replaces must not go.

One that was given none for half a minute is ready as well: the agent may be of
another version, which can't.

Exit status: 0 ready, 1 not.`

func newProxyReadyCommand() *cobra.Command {
	var s state
	cmd := &cobra.Command{
		Use: "ready", Short: "Tell whether the proxy started last has the new connections", Long: proxyReadyLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
				return err
			}
			place, since, err := redirect.Newest(s.dir())
			if err != nil {
				return err
			}
			if why := notReady(cmd.Context(), s, place, since); why != "" {
				fmt.Fprintln(cmd.OutOrStdout(), why)
				return exitCode(1)
			}
			return nil
		},
	}
	stateFlag(cmd, &s)
	return cmd
}

// notReady tells why the proxy at a place is not ready; "": it is.
func notReady(ctx context.Context, s state, place int, since time.Time) string {
	if place == 0 {
		return "no proxy runs"
	}
	st, _, err := askOnce(withContext(ctx), agentSocket(s.socket()), url.Values{})
	switch {
	case err == nil && st.Proxy.Place >= place:
		return ""
	case time.Since(since) > strangerPatience:
		return ""
	case err != nil:
		return err.Error()
	}
	return "the proxy has no new connections yet"
}

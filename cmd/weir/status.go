package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const statusLong = `Status shows what is enforced on this node: objects and what is wrong with them,
pods and the policies that select them, the proxy, and drops by reason.

With --wait it first has everything read again, from the API server or the
directory of objects, and returns once all of that is enforced: what was there
before the call counts. A pod without an interface is not waited for.

A kind of objects that can't be read is named, with what the API server forbids.
Where policies of a kind never came into force on this node, all others are
enforced without them; else what was in force stays as it was.

Exit status: 0 ready, 1 not (or not in time), 2 no agent answers.`

// newStatusCommand is `weir status`.
func newStatusCommand() *cobra.Command {
	var s state
	var output, socket string
	var wait, ready, alive bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is enforced on this node, and what is not",
		Long:  statusLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(s.check(), oneOf("output", output, "text", "json")); err != nil {
				return err
			}
			if err := enterHostMounts(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			at := agentSocket(s.socket())
			if socket != "" {
				at = agentSocket(socket)
			}
			switch {
			case alive:
				return probe(ctx, at, "/healthz", cmd.OutOrStdout())
			case ready:
				return probe(ctx, at, "/readyz", cmd.OutOrStdout())
			}
			out, errOut := cmd.OutOrStdout(), cmd.ErrOrStderr()
			if !wait {
				timeout = 0
			}
			st, text, err := askStatus(ctx, at, timeout)
			if err != nil {
				return err
			}
			if st.Waited != "" {
				fmt.Fprintf(errOut, "weir: not enforced within %v: %s\n", timeout, st.Waited)
			}
			switch {
			case output == "json":
				_, err = out.Write(text)
			case wait && st.Waited == "":
				_, err = fmt.Fprintln(out, st.enforced())
			case !wait:
				err = st.print(out)
			}
			if err != nil {
				return err
			}
			if !st.Ready || st.Waited != "" {
				return exitCode(1)
			}
			return nil
		},
	}
	stateFlag(cmd, &s)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().BoolVar(&wait, "wait", false, "return once all objects there are now are enforced")
	cmd.Flags().BoolVar(&ready, "ready", false, "only tell whether it is ready, and why not; an agent that stands by is once it could take over")
	cmd.Flags().BoolVar(&alive, "alive", false, "only tell whether it answers")
	cmd.Flags().StringVar(&socket, "socket", "", "ask the agent at this unix socket `file` (weir agent --own-socket) instead of the one that has the state")
	cmd.MarkFlagsMutuallyExclusive("ready", "alive", "wait")
	cmd.MarkFlagsMutuallyExclusive("ready", "alive", "output")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long --wait waits")
	return cmd
}

// probe asks one question that is answered by yes or no.
func probe(ctx context.Context, at agentSocket, question string, out io.Writer) error {
	resp, err := at.get(ctx, question, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return exitCode(1)
	}
	return nil
}

// askStatus asks the agent, and with a wait gives it that long to enforce
// everything; an agent that is just starting is waited for as well.
func askStatus(ctx context.Context, s agentSocket, wait time.Duration) (st agentStatus, text []byte, err error) {
	end := time.Now().Add(wait)
	for {
		query := url.Values{}
		if wait > 0 {
			query.Set("wait", max(time.Until(end), time.Millisecond).String())
		}
		st, text, err = askOnce(ctx, s, query)
		if err == nil || ctx.Err() != nil || time.Until(end) <= 0 {
			return st, text, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func askOnce(ctx context.Context, s agentSocket, query url.Values) (st agentStatus, text []byte, err error) {
	resp, err := s.get(ctx, "/status", query)
	if err != nil {
		return st, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, nil, fmt.Errorf("ask the agent: %s", resp.Status)
	}
	if text, err = io.ReadAll(resp.Body); err != nil {
		return st, nil, fmt.Errorf("ask the agent: %w", err)
	}
	if err := json.Unmarshal(text, &st); err != nil {
		return st, nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	return st, text, nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// sortedKinds lists kinds of objects with their numbers, most first.
func sortedKinds(kinds map[string]int) []string {
	names := make([]string, 0, len(kinds))
	for k := range kinds {
		names = append(names, k)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(kinds[b], kinds[a]), cmp.Compare(a, b))
	})
	for i, k := range names {
		names[i] = fmt.Sprintf("%d %s", kinds[k], k)
	}
	return names
}

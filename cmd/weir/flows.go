package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/flow"
)

const flowsLong = `Flows shows what was seen on this node: the kernel's verdict on each new flow and
each drop, and every request the proxy decided; with the pods, the reason, and
the policy that decided.

A filter may be given several times: any of its values will do; all filters that
are given must hold. A pod is namespace/pod, a pod's name, or an address.

With -o json each line is one record; see flow.Record in the source.`

// newFlowsCommand is `weir flows`.
func newFlowsCommand() *cobra.Command {
	var s state
	var q flow.Query
	var since, output string
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Show who asked whom for what, the verdict, and why",
		Long:  flowsLong,
		Example: `  weir flows -f --verdict dropped
  weir flows --since 10m --pod shop/web --policy shop/web-http -o json
  weir flows --to shop/cart --method POST --path '^/checkout'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(s.check(), oneOf("output", output, "text", "json")); err != nil {
				return err
			}
			if since != "" {
				t, err := parseSince(since, time.Now())
				if err != nil {
					return err
				}
				q.Since = t
			}
			if !cmd.Flags().Changed("last") {
				switch {
				case since != "":
					q.Last = -1
				case q.Follow:
					q.Last = 0
				}
			}
			if err := enterHostMounts(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return showFlows(ctx, s, q, output, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	stateFlag(cmd, &s)
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes; without --last or --since only that")
	f.IntVar(&q.Last, "last", 20, "the latest `N` of those that match; -1 for all that are kept")
	f.StringVar(&since, "since", "", "not older than: a duration as 10m, or a time as 2026-01-02T15:04:05Z")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.StringSliceVar(&q.Filter.Pod, "pod", nil, "either end is this pod")
	f.StringSliceVar(&q.Filter.From, "from", nil, "the source is this pod")
	f.StringSliceVar(&q.Filter.To, "to", nil, "the destination is this pod")
	f.StringSliceVarP(&q.Filter.Namespace, "namespace", "n", nil, "either end is in this namespace")
	f.StringSliceVar(&q.Filter.Verdict, "verdict", nil, "forwarded, dropped or redirected")
	f.StringSliceVar(&q.Filter.Reason, "reason", nil, "reason, as policy-denied")
	f.StringSliceVar(&q.Filter.Direction, "direction", nil, "ingress or egress: the end that judged")
	f.StringSliceVar(&q.Filter.Protocol, "protocol", nil, "TCP, UDP, SCTP, ICMP, ICMPv6 or a number")
	f.Var(portList{&q.Filter.Port}, "port", "port of either end")
	f.StringSliceVar(&q.Filter.Layer, "layer", nil, "l4 (the kernel) or l7 (the proxy)")
	f.StringSliceVar(&q.Filter.Policy, "policy", nil, "decided by this policy: namespace/name or name")
	f.StringSliceVar(&q.Filter.Method, "method", nil, "HTTP method")
	f.StringVar(&q.Filter.Path, "path", "", "HTTP path: a regular expression somewhere in it")
	f.IntSliceVar(&q.Filter.Status, "status", nil, "HTTP status")
	f.StringVar(&q.Filter.Name, "name", "", "DNS name that was asked for: a regular expression somewhere in it")
	return cmd
}

func showFlows(ctx context.Context, s state, q flow.Query, output string, out, errOut io.Writer) error {
	resp, err := s.get(ctx, "/flows", q.Values())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return printFlows(ctx, resp.Body, q.Follow, output, out, errOut)
}

// printFlows writes lines of /flows as they come.
func printFlows(ctx context.Context, in io.Reader, follow bool, output string, out, errOut io.Writer) error {
	color := output == "text" && wantsColor(out)
	lines := bufio.NewReader(in)
	for {
		text, err := lines.ReadBytes('\n')
		if ctx.Err() != nil {
			return nil // the user has seen enough
		}
		if errors.Is(err, io.EOF) && follow {
			return errors.New("the agent has gone")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read flows: %w", err)
		}
		if err := showFlow(text, output, color, out, errOut); err != nil {
			return err
		}
	}
}

func showFlow(text []byte, output string, color bool, out, errOut io.Writer) error {
	var line struct {
		flow.Record
		Lost uint64 `json:"lost"`
	}
	if err := json.Unmarshal(text, &line); err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	if line.Lost > 0 {
		fmt.Fprintf(errOut, "weir: %d records came faster than they were read and are missing here\n", line.Lost)
	}
	if line.Time.IsZero() {
		return nil
	}
	var err error
	if output == "json" {
		_, err = out.Write(text)
	} else {
		_, err = fmt.Fprintln(out, line.Text(color))
	}
	return err
}

// parseSince reads a duration before now, or a time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d.Abs()), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("since %q is neither a duration (10m) nor a time (2026-01-02T15:04:05Z)", s)
	}
	return t, nil
}

// wantsColor tells whether out is a terminal whose user did not object.
func wantsColor(out io.Writer) bool {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	return isTerminal(out)
}

func oneOf(what, got string, allowed ...string) error {
	for _, a := range allowed {
		if got == a {
			return nil
		}
	}
	return fmt.Errorf("%s %q: must be %s", what, got, strings.Join(allowed, " or "))
}

// portList is a flag of ports.
type portList struct{ ports *[]uint16 }

func (p portList) Type() string   { return "ports" }
func (p portList) String() string { return "" }

func (p portList) Set(s string) error {
	for text := range strings.SplitSeq(s, ",") {
		var n uint16
		if _, err := fmt.Sscanf(text, "%d", &n); err != nil || fmt.Sprint(n) != text {
			return fmt.Errorf("%q is no port", text)
		}
		*p.ports = append(*p.ports, n)
	}
	return nil
}

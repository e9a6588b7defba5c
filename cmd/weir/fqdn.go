package main

import (
	"bufio"
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
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

const fqdnLong = `Fqdn lists the names that pods of this node asked for, with the addresses that
believed servers gave for them: for how long each still stands for its name,
whether a flow to it is open (then it stays beyond that time), the identity the
kernel knows it as, the toFQDNs selectors that match the name, and the pods that
asked last.

What servers say that only policies of one namespace name counts for these
policies only: such a name stands behind its namespace and a slash.

With -o json each line is one name.`

// newFqdnCommand is `weir fqdn`.
func newFqdnCommand() *cobra.Command {
	var s state
	var output string
	cmd := &cobra.Command{
		Use:   "fqdn [PART-OF-NAME]",
		Short: "Show the names pods asked for, and the addresses they stand for",
		Long:  fqdnLong,
		Example: `  weir fqdn
  weir fqdn cdn.example.com -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(s.check(), oneOf("output", output, "text", "json")); err != nil {
				return err
			}
			if err := enterHostMounts(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return showNames(ctx, s, strings.Join(args, ""), output, cmd.OutOrStdout())
		},
	}
	stateFlag(cmd, &s)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func showNames(ctx context.Context, s state, match, output string, out io.Writer) error {
	query := url.Values{}
	if match != "" {
		query.Set("match", match)
	}
	resp, err := s.get(ctx, "/fqdn", query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the agent: %s", resp.Status)
	}
	names, err := readNames(resp.Body)
	if err != nil {
		return err
	}
	if output == "json" {
		enc := json.NewEncoder(out)
		for _, n := range names {
			if err := enc.Encode(n); err != nil {
				return err
			}
		}
		return nil
	}
	return printNames(out, names, time.Now())
}

// readNames reads lines of /fqdn, and orders them by name.
func readNames(in io.Reader) ([]nameLine, error) {
	var names []nameLine
	lines := json.NewDecoder(bufio.NewReader(in))
	for {
		var n nameLine
		err := lines.Decode(&n)
		if errors.Is(err, io.EOF) {
			slices.SortFunc(names, func(a, b nameLine) int {
				return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Namespace, b.Namespace))
			})
			return names, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read names: %w", err)
		}
		if n.Error != "" {
			return nil, errors.New(n.Error)
		}
		names = append(names, n)
	}
}

// printNames writes a line for each address of each name.
func printNames(out io.Writer, names []nameLine, now time.Time) error {
	if len(names) == 0 {
		_, err := fmt.Fprintln(out, "no names")
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tADDRESS\tLIFE\tALIVE\tIDENTITY\tSELECTORS\tPODS")
	for _, n := range names {
		var selectors []string
		for _, s := range n.Selectors {
			selectors = append(selectors, printable(s.String()))
		}
		name := printable(n.Name)
		if name == "" {
			name = "."
		}
		if n.Namespace != "" {
			name = printable(n.Namespace) + "/" + name
		}
		for _, a := range n.Addresses {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, a.Address, life(a.Expires.Sub(now)), yesNo(a.Alive),
				orDash(a.Identity != 0, fmt.Sprint(a.Identity)), list(selectors), list(n.Pods))
		}
	}
	return t.Flush()
}

// printable is a name as it may stand on a terminal: those that were learned have
// no other characters, but it is the proxy who says which were.
func printable(name string) string {
	return strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return '?'
		}
		return c
	}, name)
}

// life is what is left of a time.
func life(d time.Duration) string {
	if d <= 0 {
		return "over"
	}
	return d.Round(time.Second).String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func list(texts []string) string { return orDash(len(texts) > 0, strings.Join(texts, ",")) }

func orDash(there bool, text string) string {
	if there {
		return text
	}
	return "-"
}

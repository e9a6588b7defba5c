package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/proxy"
	"github.com/weirnet/weir/redirect"
)

// proxyLogSize bounds a proxy's log, of which there are two.
const proxyLogSize = 8 << 20

// restartStatus is the exit status of a proxy that wants a successor.
const restartStatus exitCode = 75

const proxyLong = `Proxy runs the L7 proxy of this node, until it is told to end. The agent starts it
where none runs.

Where one runs already this one takes its place, once it is set up: it gets the
new connections and those that are idle at once, the others when they come to the
end of a message, and the old one ends with the last of them.`

// proxyFlags are the same for the three steps a proxy's process goes through.
type proxyFlags struct {
	state   state
	logFile string
	managed bool
	stay    bool
	userns  string
	drain   time.Duration
	threads int
	verbose bool
	timeout time.Duration
}

func (f *proxyFlags) args() []string {
	return append([]string{"--state", string(f.state)}, f.options()...)
}

// options are those that a proxy passes on to what it becomes.
func (f *proxyFlags) options() []string {
	args := []string{"--drain", f.drain.String(), "--threads", strconv.Itoa(f.threads)}
	if f.verbose {
		args = append(args, "--verbose")
	}
	return args
}

func (f *proxyFlags) logger(w io.Writer) *slog.Logger {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// newProxyCommand runs the proxy: a launcher that supervises it, and in
// namespaces of its own the proxy itself.
//
//	weir proxy          root: makes the socket, starts and restarts ...
//	weir proxy confine  nobody, in new namespaces: gives up power, becomes ...
//	weir proxy serve    the proxy
//	weir proxy ready    tells whether the proxy started last has the new flows
//	weir proxy replace  starts another launcher, detached, beside the running one
func newProxyCommand() *cobra.Command {
	f := &proxyFlags{}
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Run the L7 proxy of this node (the agent starts it where none runs)",
		Long:  proxyLong,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return f.launch(cmd.Context()) },
	}
	cmd.Flags().StringVar(&f.logFile, "log-file", "", "log to this file, of bounded size, instead of standard error")
	cmd.Flags().BoolVar(&f.stay, "stay", false, "do not end when the proxy is replaced, and start another when none runs: where something would start this again, as in a container")
	cmd.Flags().StringVar(&f.userns, "user-namespace", string(redirect.UserNamespaceAuto), "auto: the proxy gets one where the machine has them; always: or it is not started; never: none. Without, the launcher needs more capabilities")
	cmd.Flags().BoolVar(&f.managed, "managed", false, "an agent of another binary may replace it")
	_ = cmd.Flags().MarkHidden("managed") // there is such a flag
	confine := &cobra.Command{
		Use: "confine", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return redirect.Confine(append([]string{"proxy", "serve"}, f.args()...))
		},
	}
	serve := &cobra.Command{
		Use: "serve", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.serve(cmd.Context()) },
	}
	replace := &cobra.Command{
		Use: "replace", Short: "Replace the running proxy by one of this binary", Long: replaceLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.replace(cmd) },
	}
	replace.Flags().DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait until it has the new flows")
	cmd.AddCommand(replace, newProxyReadyCommand(), confine, serve)
	for _, c := range []*cobra.Command{cmd, replace, confine, serve} {
		stateFlag(c, &f.state)
		c.Flags().DurationVar(&f.drain, "drain", 10*time.Second, "how long connections may go on after SIGTERM")
		c.Flags().IntVar(&f.threads, "threads", 0, "how many threads serve connections (0: one per CPU)")
		c.Flags().BoolVar(&f.verbose, "verbose", false, "log more")
	}
	return cmd
}

func (f *proxyFlags) launch(ctx context.Context) error {
	if err := errors.Join(f.state.check(), oneOf("user-namespace", f.userns,
		string(redirect.UserNamespaceAuto), string(redirect.UserNamespaceAlways), string(redirect.UserNamespaceNever))); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(withContext(ctx), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var out io.Writer = os.Stderr
	if f.logFile != "" {
		if err := os.MkdirAll(filepath.Dir(f.logFile), 0o755); err != nil {
			return fmt.Errorf("make the log's directory: %w", err)
		}
		l, err := redirect.OpenLog(f.logFile, proxyLogSize)
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		out = l
	}
	return f.stayed(ctx, func(ctx context.Context) error {
		return redirect.Launch(ctx, redirect.LauncherOptions{
			RunDir:  f.state.dir(),
			Child:   append([]string{"proxy", "confine"}, f.args()...),
			Managed: f.managed, UserNamespace: redirect.UserNamespace(f.userns),
			Drain:  f.drain,
			Log:    out,
			Logger: f.logger(out),
		})
	})
}

func (f *proxyFlags) serve(ctx context.Context) error {
	// Standard error is a pipe to the launcher: the proxy outlives it.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(withContext(ctx), syscall.SIGTERM)
	defer stop()
	if f.threads > 0 {
		runtime.GOMAXPROCS(f.threads)
	}
	in, err := redirect.Inherit()
	if err != nil {
		return err
	}
	if err := redirect.Seal(); err != nil {
		return err
	}
	err = proxy.Run(ctx, proxy.Options{
		Listener: in.Listener, Netns: in.Netns, Statm: in.Statm,
		Version: version, Build: in.Build, Managed: in.Managed, Notes: redirect.Notes(),
		Drain: f.drain, Log: f.logger(os.Stderr),
	})
	if errors.Is(err, proxy.ErrRestart) {
		return restartStatus
	}
	return err
}

func withContext(ctx context.Context) context.Context {
	if ctx == nil {
		return context.Background()
	}
	return ctx
}

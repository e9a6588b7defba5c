package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/proxy"
)

// TestMain lets the test binary be the launcher, the proxy and a prisoner as
// well: all of them execute "this very binary".
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "proxy" {
		if err := subprocess(os.Args[2], os.Args[3:]); err != nil {
			if errors.Is(err, proxy.ErrRestart) {
				os.Exit(75)
			}
			fmt.Fprintln(os.Stderr, "subprocess:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func subprocess(verb string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch verb {
	case "launch", "launch-nouserns": // RUNDIR CHILD...
		userns := UserNamespaceAlways
		if verb == "launch-nouserns" {
			userns = UserNamespaceNever
		}
		l, err := OpenLog(filepath.Join(args[0], logName), 1<<20)
		if err != nil {
			return err
		}
		return Launch(ctx, LauncherOptions{
			RunDir: args[0], Child: args[1:], Managed: true, UserNamespace: userns, Drain: 5 * time.Second,
			Log: l, Logger: slog.New(slog.NewTextHandler(l, nil)),
		})
	case "confine": // VERB ARGS...
		return Confine(append([]string{"proxy"}, args...))
	case "serve":
		signal.Ignore(syscall.SIGPIPE)
		in, err := Inherit()
		if err != nil {
			return err
		}
		if err := Seal(); err != nil {
			return err
		}
		return proxy.Run(ctx, proxy.Options{
			Listener: in.Listener, Netns: in.Netns, Statm: in.Statm, Notes: Notes(),
			Version: "test", Build: in.Build, Managed: in.Managed,
			Drain: 5 * time.Second, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
	case "agent": // RUNDIR CONFIG
		return miniAgent(ctx, args[0], args[1])
	case "die": // at once
		return errors.New("died at once")
	case "probe": // sealed|unsealed VICTIM PIN
		return prisoner(args[0], args[1], args[2])
	}
	return fmt.Errorf("no verb %q", verb)
}

// needRoot ends a test that needs what only root has.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// childOf returns the only child of a process, or 0.
func childOf(pid int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) > 1 && f[1] == strconv.Itoa(pid) && f[0] != "Z" {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return child
		}
	}
	return 0
}

// patience is how long is waited for what comes at once, where nothing but a
// failure depends on it: the machine may have other things to do.
const patience = 30 * time.Second

func waitFor(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// showLog prints the proxy's log when the test failed.
func showLog(t *testing.T, runDir string) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		f, err := os.Open(filepath.Join(runDir, logName))
		if err != nil {
			return
		}
		defer f.Close()
		b, _ := io.ReadAll(io.LimitReader(f, 16<<10))
		t.Logf("proxy's log:\n%s", b)
	})
}

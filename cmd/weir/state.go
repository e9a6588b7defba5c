package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// state is everything one agent owns on this machine: several nodes on one
// machine have several. All of it hangs on the name.
type state string

// defaultState is the one of a node that has the machine for itself.
const defaultState = "weir"

var stateName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

// stateFlag adds --state to a command.
func stateFlag(cmd *cobra.Command, s *state) {
	cmd.Flags().StringVar((*string)(s), "state", defaultState, "name of what the agent owns on this machine")
}

func (s state) check() error {
	if !stateName.MatchString(string(s)) {
		return fmt.Errorf("state %q: a name of letters, digits, dots, dashes and underscores is needed", string(s))
	}
	return nil
}

// dir is the run directory, pins the bpffs in it, socket where the agent
// answers.
func (s state) dir() string    { return filepath.Join("/run/weir", string(s)) }
func (s state) pins() string   { return filepath.Join(s.dir(), "bpf") }
func (s state) socket() string { return filepath.Join(s.dir(), "agent.sock") }

// holder is who has, or had, a state.
type holder struct {
	pid   int
	netns uint64 // inode of its network namespace
	node  string
}

func (h holder) String() string { return fmt.Sprintf("pid %d, node %s", h.pid, h.node) }

func readHolder(f *os.File) (h holder) {
	// What can't be read is not known: it is for people, and for uninstalling.
	_, _ = fmt.Fscanf(f, "%d %d %s\n", &h.pid, &h.netns, &h.node)
	return h
}

// lock takes the state for this process, and tells who had it before. Where
// another process has it the error is an errHeld.
func (s state) lock(node string) (release func(), before holder, err error) {
	path := filepath.Join(s.dir(), "agent.lock")
	for {
		if err := os.MkdirAll(s.dir(), 0o755); err != nil {
			return nil, holder{}, fmt.Errorf("make the run directory: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, holder{}, fmt.Errorf("lock state %s: %w", s, err)
		}
		before = readHolder(f)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, before, &errHeld{state: s, holder: before}
			}
			return nil, before, fmt.Errorf("lock %s: %w", path, err)
		}
		// An uninstall that was under way has removed the file: take the new one.
		if now, err := os.Stat(path); err != nil || !sameOpenFile(f, now) {
			f.Close()
			continue
		}
		err = f.Truncate(0)
		if err == nil {
			_, err = f.WriteAt(fmt.Appendf(nil, "%d %d %s\n", os.Getpid(), networkNamespace(), node), 0)
		}
		if err != nil {
			f.Close()
			return nil, before, fmt.Errorf("write %s: %w", path, err)
		}
		return func() { f.Close() }, before, nil
	}
}

func sameOpenFile(f *os.File, info os.FileInfo) bool {
	own, err := f.Stat()
	return err == nil && os.SameFile(own, info)
}

// networkNamespace is the inode of the process's network namespace; 0 where
// that can't be read.
func networkNamespace() uint64 {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		return 0
	}
	return st.Ino
}

// errHeld says that another agent has the state.
type errHeld struct {
	state  state
	holder holder
}

func (e *errHeld) Error() string {
	return fmt.Sprintf("state %s is held by another agent (%s)", e.state, e.holder)
}

// errNoAgent says that no agent answers.
var errNoAgent = errors.New("no agent is running")

// get asks the agent of this state. The caller closes the body.
func (s state) get(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	return agentSocket(s.socket()).get(ctx, path, query)
}

// agentSocket is where some agent answers.
type agentSocket string

func (s agentSocket) get(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", string(s))
		},
	}}
	u := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w (nobody answers at %s)", errNoAgent, s)
	}
	if err != nil {
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err
		}
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	if resp.StatusCode == http.StatusBadRequest {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // best effort: it is an error's text
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return resp, nil
}

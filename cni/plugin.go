package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Type is the plugin's name in configurations, and that of its file.
const Type = "weir"

// Versions of the specification that are followed. Results of older ones have
// another form.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// maxConfig is the longest configuration that is read, with the results of the
// plugins before.
const maxConfig = 1 << 20

// What to do where the agent can't say that a pod's policy is in force.
const (
	// Fail: the pod does not start; kubelet tries again.
	Fail = "fail"
	// Allow: it starts as if the plugin were not there.
	Allow = "allow"
)

// config is the plugin's part of the configuration.
type config struct {
	CNIVersion string          `json:"cniVersion"`
	Type       string          `json:"type"`
	PrevResult json.RawMessage `json:"prevResult"`
	// State names the agent, as its --state.
	State string `json:"state"`
	// Timeout is how long ADD waits (Go's spelling of a duration).
	Timeout string `json:"timeout"`
	// OnTimeout and NoAgent say what becomes of a pod whose policy is not in force
	// then, and of one where no agent answers: "fail" or "allow".
	OnTimeout string `json:"onTimeout"`
	NoAgent   string `json:"noAgent"`

	timeout time.Duration
}

// Defaults of a configuration.
const (
	DefaultState   = "weir"
	DefaultTimeout = 10 * time.Second
)

// Env is how the runtime calls a plugin: getenv is for the variables CNI_*, RunDir
// the directory of the agents' run directories.
type Env struct {
	Getenv func(string) string
	In     io.Reader
	Out    io.Writer
	RunDir string // /run/weir where it is empty
}

// failure is an error as the specification has it.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (f *failure) Error() string { return f.Msg }

// Codes of the specification: below 100 they are its own.
const (
	codeVersion     = 1
	codeEnvironment = 4
	codeRead        = 5
	codeDecode      = 6
	codeConfig      = 7
	codeAgain       = 11
	codeUnavailable = 50
)

func failf(code int, format string, args ...any) *failure {
	return &failure{Code: code, Msg: "weir: " + fmt.Sprintf(format, args...)}
}

// Run does what the runtime asks for and writes the answer; ok is false if that
// is an error.
func Run(ctx context.Context, e Env) (ok bool) {
	version, out, err := run(ctx, e)
	if err == nil {
		_, err = e.Out.Write(out)
		return err == nil
	}
	f := (*failure)(nil)
	if !errors.As(err, &f) {
		f = failf(codeAgain, "%v", err)
	}
	if f.CNIVersion = version; version == "" {
		f.CNIVersion = versions[len(versions)-1]
	}
	_ = json.NewEncoder(e.Out).Encode(f) // nobody else to tell
	return false
}

func run(ctx context.Context, e Env) (version string, out []byte, err error) {
	command := e.Getenv("CNI_COMMAND")
	text, err := io.ReadAll(io.LimitReader(e.In, maxConfig+1))
	switch {
	case err != nil:
		return "", nil, failf(codeRead, "read the configuration: %v", err)
	case len(text) > maxConfig:
		return "", nil, failf(codeRead, "the configuration is longer than %d bytes", maxConfig)
	case command == "VERSION":
		return "", encode(map[string]any{"cniVersion": versions[len(versions)-1], "supportedVersions": versions}), nil
	}
	c, err := readConfig(text)
	if err != nil {
		return "", nil, err
	}
	if !slices.Contains(versions, c.CNIVersion) {
		return "", nil, failf(codeVersion, "version %q of the specification is not among %s", c.CNIVersion, strings.Join(versions, ", "))
	}
	runDir := e.RunDir
	if runDir == "" {
		runDir = "/run/weir"
	}
	a := agent{socket: filepath.Join(runDir, c.State, "agent.sock")}
	switch command {
	case "ADD":
		out, err = c.add(ctx, a, e.Getenv("CNI_ARGS"))
	case "CHECK":
		err = c.check(ctx, a, e.Getenv("CNI_ARGS"))
	case "DEL":
		c.del(ctx, a, e.Getenv("CNI_ARGS"))
	case "GC":
	case "STATUS":
		if err = a.ready(ctx); err != nil && c.NoAgent == Allow {
			err = nil
		}
		if err != nil {
			err = failf(codeUnavailable, "%v", err)
		}
	default:
		err = failf(codeEnvironment, "CNI_COMMAND is %q", command)
	}
	return c.CNIVersion, out, err
}

var stateName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

func readConfig(text []byte) (*config, error) {
	c := &config{State: DefaultState, OnTimeout: Fail, NoAgent: Fail, timeout: DefaultTimeout}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, failf(codeDecode, "read the configuration: %v", err)
	}
	if !stateName.MatchString(c.State) {
		return nil, failf(codeConfig, "state %q is no name of a state", c.State)
	}
	for field, value := range map[string]string{"onTimeout": c.OnTimeout, "noAgent": c.NoAgent} {
		if value != Fail && value != Allow {
			return nil, failf(codeConfig, "%s is %q, neither %q nor %q", field, value, Fail, Allow)
		}
	}
	if c.Timeout != "" {
		d, err := time.ParseDuration(c.Timeout)
		if err != nil || d <= 0 {
			return nil, failf(codeConfig, "timeout %q is no duration", c.Timeout)
		}
		c.timeout = d
	}
	return c, nil
}

// add waits for the policy of a pod, and passes on what came before.
func (c *config) add(ctx context.Context, a agent, args string) ([]byte, error) {
	if len(c.PrevResult) == 0 || bytes.Equal(c.PrevResult, []byte("null")) {
		return nil, failf(codeConfig, "there is no prevResult: it must come after the plugin that makes the interface")
	}
	said, err := c.announcement(args)
	if err != nil {
		return nil, err
	}
	if said == nil {
		return c.PrevResult, nil // no pod of Kubernetes
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err = a.announce(ctx, said)
	switch {
	case errors.Is(err, errNoAgent) && c.NoAgent == Allow, err != nil && !errors.Is(err, errNoAgent) && c.OnTimeout == Allow:
		return c.PrevResult, nil
	case err != nil:
		return nil, failf(codeAgain, "the policy of pod %s/%s is not in force: %v", said.Namespace, said.Name, err)
	}
	return c.PrevResult, nil
}

func (c *config) check(ctx context.Context, a agent, args string) error {
	said, err := c.announcement(args)
	if err != nil || said == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := a.announce(ctx, said); err != nil {
		return failf(codeAgain, "the policy of pod %s/%s is not in force: %v", said.Namespace, said.Name, err)
	}
	return nil
}

// del tells the agent, if there is one: without it nothing is to be taken back.
func (c *config) del(ctx context.Context, a agent, args string) {
	if said := podOf(args); said != nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = a.withdraw(ctx, said) // it forgets by itself
	}
}

// announcement is what the agent is to be told; nil where this is no pod of
// Kubernetes.
func (c *config) announcement(args string) (*Announcement, error) {
	said := podOf(args)
	if said == nil {
		return nil, nil
	}
	var result struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(c.PrevResult, &result); err != nil {
		return nil, failf(codeDecode, "read prevResult: %v", err)
	}
	for _, ip := range result.IPs {
		p, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, failf(codeDecode, "prevResult has an address %q", ip.Address)
		}
		said.Addresses = append(said.Addresses, p.Addr())
	}
	if len(said.Addresses) == 0 {
		return nil, failf(codeConfig, "prevResult has no address of pod %s/%s", said.Namespace, said.Name)
	}
	return said, nil
}

// podOf reads CNI_ARGS; nil where no pod is named.
func podOf(args string) *Announcement {
	said := &Announcement{}
	for arg := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "K8S_POD_NAMESPACE":
			said.Namespace = value
		case "K8S_POD_NAME":
			said.Name = value
		case "K8S_POD_UID":
			said.UID = value
		}
	}
	if said.Namespace == "" || said.Name == "" {
		return nil
	}
	return said
}

func encode(v any) []byte {
	out, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // strings only
	}
	return append(out, '\n')
}

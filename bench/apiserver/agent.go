package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// agent is a running agent.
type agent struct {
	cmd    *exec.Cmd
	client *http.Client
	binary string
	state  string
}

// startAgent starts one and returns when it listens.
func startAgent(binary, state, kubeconfig, log string, env []string) (*agent, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	a := &agent{cmd: exec.Command(binary, "agent", "--kubeconfig", kubeconfig, "--state", state, "--node-name", "node-0", "--metrics-addr", ""), binary: binary, state: state}
	a.cmd.Stdout, a.cmd.Stderr, a.cmd.Env = out, out, append(os.Environ(), env...)
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	socket := "/run/weir/" + state + "/agent.sock"
	a.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	return a, a.cmd.Start()
}

// stop ends the agent and removes all it owns.
func (a *agent) stop() error {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	_ = a.cmd.Wait()
	if out, err := exec.Command(a.binary, "uninstall", "--state", a.state, "--yes").CombinedOutput(); err != nil {
		return fmt.Errorf("uninstall: %w: %s", err, out)
	}
	return nil
}

// status is as much of the agent's as matters here.
type status struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"`
	Objects struct {
		Kinds    map[string]int `json:"kinds"`
		Complete bool           `json:"complete"`
	} `json:"objects"`
	Policy struct {
		Started, Realised bool
		Revision          uint64
		TookNs            time.Duration
		Endpoints         []struct{ Pod string }
	} `json:"policy"`
}

// total is how many objects the agent has.
func (s status) total() (n int) {
	for _, k := range s.Objects.Kinds {
		n += k
	}
	return n
}

func (a *agent) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func (a *agent) status(ctx context.Context) (s status, err error) {
	text, err := a.get(ctx, "/status")
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	return s, err
}

// until asks for the status until cond holds.
func (a *agent) until(ctx context.Context, limit time.Duration, cond func(status) bool) (s status, err error) {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		if s, err = a.status(ctx); err == nil && cond(s) {
			return s, nil
		}
		if ctx.Err() != nil {
			return s, ctx.Err()
		}
		if time.Now().After(end) {
			return s, errors.Join(err, fmt.Errorf("not within %v; %s", limit, strings.Join(s.Reasons, "; ")))
		}
	}
}

// memory is a line of /proc/PID/status, in MB.
func (a *agent) memory(field string) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field+":" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib * 1024 / 1e6
		}
	}
	return 0
}

// cpu is how much time the agent has computed.
func (a *agent) cpu() time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// sum adds up a metric over its labels that contain all parts; not a number where
// the agent does not tell.
func (a *agent) sum(metric string, parts ...string) (sum float64) {
	text, err := a.get(context.Background(), "/metrics")
	if err != nil {
		return math.NaN()
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		ok := strings.HasPrefix(line, metric+"{") || strings.HasPrefix(line, metric+" ")
		for _, p := range parts {
			ok = ok && strings.Contains(line, p)
		}
		if ok {
			v, _ := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			sum += v
		}
	}
	return sum
}

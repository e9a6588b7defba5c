package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticksPerSecond is USER_HZ, the unit of /proc: fixed by the kernel's ABI on
// the architectures this runs on.
const ticksPerSecond = 100

// process is a program started in a network namespace.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// start runs a program in a namespace, its output going to logDir/name.log.
func start(ns, logDir, name string, env []string, argv ...string) (*process, error) {
	log := filepath.Join(logDir, name+".log")
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd, err := placed(context.Background(), ns, argv...)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(cmd.Env, env...)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	return p, nil
}

// stop asks the program's process group to end, and kills it after a while.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// kill ends the program itself at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// tail is the end of what the program printed, for error messages.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-2000):]))
}

// run runs a program to its end in a namespace and returns what it printed.
func run(ctx context.Context, ns string, argv ...string) ([]byte, error) {
	out, _, err := runTimed(ctx, ns, argv...)
	return out, err
}

// runTimed is run, and tells the CPU time the program used.
func runTimed(ctx context.Context, ns string, argv ...string) ([]byte, time.Duration, error) {
	cmd, err := placed(ctx, ns, argv...)
	if err != nil {
		return nil, 0, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, 0, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err,
			bytes.TrimSpace(append(stderr.Bytes(), out[max(0, len(out)-1000):]...)))
	}
	return out, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// tree returns the processes of the group that p leads.
func (p *process) tree() []int {
	return processes(func(pid int) bool {
		pgid, err := syscall.Getpgid(pid)
		return err == nil && pgid == p.cmd.Process.Pid
	})
}

// runningBinary returns the processes that run the program at path.
func runningBinary(path string) []int {
	return processes(func(pid int) bool {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err == nil && exe == path
	})
}

func processes(match func(pid int) bool) []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && match(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpuOf adds up the CPU time processes have used, kernel work on their behalf
// included, threads that ended included.
func cpuOf(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it ended: what it used since the start of the cell is lost
		}
		d, err := parseProcStat(string(b))
		if err == nil {
			sum += d
		}
	}
	return sum
}

// parseProcStat reads utime+stime of one line of /proc/PID/stat.
func parseProcStat(line string) (time.Duration, error) {
	// The second field is the name in parentheses and may hold anything.
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return 0, fmt.Errorf("read process times: no name in %q", line)
	}
	f := strings.Fields(line[end+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("read process times: %d fields after the name", len(f))
	}
	user, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read process times: %w", err)
	}
	system, err := strconv.ParseInt(f[12], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read process times: %w", err)
	}
	return time.Duration(user+system) * time.Second / ticksPerSecond, nil
}

// machineBusy is the time all CPUs together were neither idle nor taken away
// by the hypervisor: it counts interrupts and kernel threads too.
func machineBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return parseMachineStat(line)
}

// parseMachineStat reads the "cpu " line of /proc/stat: user, nice, system,
// irq and softirq, not idle, iowait, steal; guest time is in user already.
func parseMachineStat(line string) (time.Duration, error) {
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("read machine times: %q is not the line of all CPUs", line)
	}
	var sum int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read machine times: %w", err)
		}
		sum += v
	}
	return time.Duration(sum) * time.Second / ticksPerSecond, nil
}

// rss is the resident memory of processes, shared pages counted once per
// process that has them.
func rss(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if f := strings.Fields(string(b)); len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum
}

// running tells whether the program has not ended.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// account is a control group that all processes of a run are in, so that what
// others use of the CPUs is known: a measurement they disturbed is made again.
type account struct {
	dir     string        // of the group; "": none could be made, nothing is known
	usage   func() string // file that tells its CPU time
	root    func() string // and that of the whole machine
	parse   func(string) (time.Duration, error)
	patient time.Duration // left for waiting and for measuring again
	spoilt  int           // measurements that were taken though disturbed
}

// accountEnv hands the group to programs that are started.
const accountEnv = "WEIR_BENCH_GROUP"

// disturbed is from what part of the machine's CPU time on others disturb.
const disturbed = 0.05

// newAccount makes a group under cgroup v1's cpuacct or under cgroup v2. Where
// there is neither, measurements are taken as they come.
func newAccount(patience time.Duration) *account {
	a := &account{patient: patience}
	name := fmt.Sprintf("%s%d", namePrefix, os.Getpid())
	for _, v := range []struct {
		root, file string
		parse      func(string) (time.Duration, error)
	}{
		{"/sys/fs/cgroup/cpuacct", "cpuacct.usage", parseCPUAcct},
		{"/sys/fs/cgroup/cpu,cpuacct", "cpuacct.usage", parseCPUAcct},
		{"/sys/fs/cgroup", "cpu.stat", parseCPUStat},
	} {
		if _, err := os.Stat(filepath.Join(v.root, v.file)); err != nil {
			continue
		}
		dir := filepath.Join(v.root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		a.dir, a.parse = dir, v.parse
		a.usage = func() string { return filepath.Join(dir, v.file) }
		a.root = func() string { return filepath.Join(v.root, v.file) }
		return a
	}
	return a
}

// enter puts this process, and so what it starts, into the group.
func enterGroup(dir string) error {
	if dir == "" {
		return nil
	}
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	if err != nil {
		return fmt.Errorf("enter control group: %w", err)
	}
	return nil
}

// close removes the group, once nothing is in it.
func (a *account) close() error {
	if a.dir == "" {
		return nil
	}
	var err error
	for range 50 {
		if err = os.Remove(a.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove control group: %w", err)
}

// others is the CPU time that processes outside the group have used.
func (a *account) others() (time.Duration, error) {
	if a.dir == "" {
		return 0, nil
	}
	all, err := a.read(a.root())
	if err != nil {
		return 0, err
	}
	own, err := a.read(a.usage())
	return all - own, err
}

func (a *account) read(file string) (time.Duration, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return a.parse(string(b))
}

// rest waits for others to rest, within the patience.
func (a *account) rest(cpus int) error {
	const look = 100 * time.Millisecond
	for a.dir != "" && a.patient > 0 {
		share, err := a.share(cpus, func() error { time.Sleep(look); return nil })
		if err != nil || share < disturbed {
			return err
		}
		a.patient -= look
	}
	return nil
}

// share is the part of the machine that others used while f ran.
func (a *account) share(cpus int, f func() error) (float64, error) {
	begin := time.Now()
	before, err := a.others()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := a.others()
	return float64(after-before) / float64(time.Since(begin)) / float64(cpus), err
}

// parseCPUAcct reads cpuacct.usage: nanoseconds.
func parseCPUAcct(s string) (time.Duration, error) {
	v, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read CPU time of a group: %w", err)
	}
	return time.Duration(v), nil
}

// parseCPUStat reads usage_usec of cgroup v2's cpu.stat.
func parseCPUStat(s string) (time.Duration, error) {
	for line := range strings.Lines(s) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			v, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read CPU time of a group: %w", err)
			}
			return time.Duration(v) * time.Microsecond, nil
		}
	}
	return 0, fmt.Errorf("read CPU time of a group: no usage_usec")
}

package redirect

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// launch is a launcher that was started and may not have a place yet.
type launch struct {
	pid   int
	began time.Time
	ended chan struct{}
	err   error // why, once it has ended
}

// start starts a launcher that outlives this process; told is called when it
// has ended nevertheless.
func start(runDir string, command []string, told func()) (*launch, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(runDir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Args[0] = os.Args[0] // the name people know it by
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	l := &launch{pid: cmd.Process.Pid, began: time.Now(), ended: make(chan struct{})}
	go func() {
		l.err = cmd.Wait()
		close(l.ended)
		told()
	}()
	return l, nil
}

// gone tells whether the launcher has ended, and how.
func (l *launch) gone() (bool, error) {
	select {
	case <-l.ended:
		return true, l.err
	default:
		return false, nil
	}
}

// Start starts a proxy by a command (see Command) beside those that run, which
// it is to succeed. The process does not end with this one. It returns the
// proxy's place, once it has one: its agent makes it the current one then.
func Start(runDir string, command []string) (int, error) {
	l, err := start(runDir, command, func() {})
	if err != nil {
		return 0, err
	}
	for time.Since(l.began) < connectTimeout {
		if gone, err := l.gone(); gone {
			return 0, fmt.Errorf("the proxy did not start (see %s): %w", filepath.Join(runDir, logName), ended(err))
		}
		places, err := livePlaces(runDir)
		if err != nil {
			return 0, err
		}
		for _, p := range places {
			if h, err := readHolders(p); err == nil && h.launcher == l.pid {
				return p.n, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, fmt.Errorf("the proxy did not start (see %s)", filepath.Join(runDir, logName))
}

// Newest is the place of the proxy that was started last and runs, and since
// when; 0: none runs.
func Newest(runDir string) (place int, since time.Time, err error) {
	places, err := livePlaces(runDir)
	if err != nil || len(places) == 0 {
		return 0, since, err
	}
	last := places[len(places)-1]
	info, err := os.Stat(last.lock())
	if err != nil {
		return 0, since, fmt.Errorf("look for proxies: %w", err)
	}
	return last.n, info.ModTime(), nil // written when its process starts
}

func ended(err error) error {
	if err == nil {
		return errors.New("it has ended")
	}
	return err
}

// launchOne starts a launcher, and says so.
func (m *Manager) launchOne(why string) (*launch, error) {
	l, err := start(m.opts.RunDir, m.opts.Command, m.rouse)
	if err != nil {
		return nil, err
	}
	m.log.Info("started a proxy", "pid", l.pid, "because", why)
	return l, nil
}

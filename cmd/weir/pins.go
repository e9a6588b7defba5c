package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// pinsRoot is the directory of --pins, in which each state has one of its own;
// "": the state's run directory has a file system for them.
type pinsRoot string

func pinsFlag(cmd *cobra.Command, p *pinsRoot) {
	cmd.Flags().StringVar((*string)(p), "pins", "", "pin programs and tables below this `directory` of a mounted bpf file system (default: one is mounted in the run directory)")
}

// dir is where the state's are.
func (p pinsRoot) dir(s state) string {
	if p == "" {
		return s.pins()
	}
	return filepath.Join(string(p), string(s))
}

// check refuses what would not outlive the agent.
func (p pinsRoot) check() error {
	if p == "" && os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return errors.New("in a container --pins DIRECTORY is needed, with the node's /sys/fs/bpf mounted: what is pinned elsewhere would end with the container, and with it what is enforced")
	}
	if p != "" && !filepath.IsAbs(string(p)) {
		return fmt.Errorf("pins %q: an absolute path is needed", string(p))
	}
	return nil
}

// mount sees to it that the state's directory is there, on a bpf file system.
func (p pinsRoot) mount(s state) error {
	if p == "" {
		return bpf.MountPins(s.pins())
	}
	return bpf.UsePins(p.dir(s))
}

// remove removes the state's directory, once nothing is pinned there.
func (p pinsRoot) remove(s state) error {
	if p == "" {
		return bpf.UnmountPins(s.pins())
	}
	if err := os.RemoveAll(p.dir(s)); err != nil {
		return fmt.Errorf("remove the directory of pins: %w", err)
	}
	// It is shared with other states, and may be the root of the file system.
	err := os.Remove(string(p))
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fmt.Errorf("remove the directory of pins: %w", err)
}

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Overtaken is a place where another's program runs before one of ours. What it
// lets pass is not judged.
type Overtaken struct {
	Ifindex int
	Program string
	By      string // the other one, for people
}

// Overtaken lists the interfaces, pods' and the node's own, where others' programs
// run before ours. AttachPod and AttachHost put ours first again, where that can be
// had.
func (d *Datapath) Overtaken() ([]Overtaken, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	byName := d.hooksByName()
	var out []Overtaken
	note := func(a attachment, by string) {
		if by != "" {
			out = append(out, Overtaken{a.ifindex, a.program, by})
		}
	}
	pinned, err := pinnedLinks(d.opts.Pins)
	if err != nil {
		return nil, err
	}
	for path, a := range pinned {
		h, ours := byName[a.program]
		if !ours {
			continue
		}
		by, err := beforeLink(path, h, a.ifindex)
		if err != nil {
			return nil, err
		}
		note(a, by)
	}
	filters, err := ownFilters(d.opts.Pins)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if _, ours := byName[f.program]; !ours {
			continue
		}
		by, err := beforeFilter(f)
		if err != nil {
			return nil, err
		}
		note(f.attachment, by)
	}
	slices.SortFunc(out, func(a, b Overtaken) int { return a.Ifindex - b.Ifindex })
	return out, nil
}

// beforeLink tells what runs before the program of the link pinned at path; ""
// if nothing does, or there is no such link.
func beforeLink(path string, h hook, ifindex int) (string, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open pinned link %s: %w", filepath.Base(path), err)
	}
	defer letGo(l)
	info, err := l.Info()
	if err != nil {
		return "", fmt.Errorf("inspect pinned link %s: %w", filepath.Base(path), err)
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex {
		return "", nil
	}
	first, err := firstProgram(h.attach, ifindex)
	if err != nil || first == nil {
		return "", err // none: the interface has just gone
	}
	if id, ok := first.LinkID(); ok && id == info.ID {
		return "", nil
	}
	return describeProgram(first.ID), nil
}

// beforeFilter tells what runs before a filter of ours; "" if nothing does.
func beforeFilter(f ownFilter) (string, error) {
	// tcx comes before all filters.
	first, err := firstProgram(f.attach, f.ifindex)
	if err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
		return "", err
	}
	switch {
	case err == nil && first != nil:
		return describeProgram(first.ID), nil
	case f.before != nil:
		return f.before.String(), nil
	}
	return "", nil
}

// firstProgram is the tcx program that runs first on one side of an interface;
// nil: there is none, or no such interface.
func firstProgram(a ebpf.AttachType, ifindex int) (*link.AttachedProgram, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: a})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("which programs are on interface %d: %w", ifindex, err)
	}
	if len(q.Programs) == 0 {
		return nil, nil
	}
	return &q.Programs[0], nil
}

func describeProgram(id ebpf.ProgramID) string {
	name := ""
	if p, err := ebpf.NewProgramFromID(id); err == nil {
		defer letGo(p)
		if info, err := p.Info(); err == nil {
			name = info.Name
		}
	}
	return fmt.Sprintf("tcx program %q, number %d", name, id)
}

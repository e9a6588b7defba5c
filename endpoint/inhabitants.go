package endpoint

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Inhabitants finds out of which pods the processes in network namespaces are. The
// cgroup of a process names its pod by its UID, as kubelet makes it for whatever
// runtime, and the kernel tells the namespace of a process by the number that
// veths have it by. Both need no right that the agent has not. The runtime puts
// the first process, which holds the namespace, there well before the pod's own
// programs start.
//
// Where nothing is found (processes can't be seen, the runtime keeps them
// elsewhere) nothing is said.
type Inhabitants struct {
	proc   string
	nsidOf func(pid int) (int, error) // -1: no veth leads there
	kernel *netlink.Handle
	log    *slog.Logger

	mu    sync.Mutex
	want  map[int32]bool
	asked chan struct{}
	found chan map[int32][]string

	// Of Run alone.
	seen map[int]*process
	last time.Time // of the last scan
}

// process is what is known of one.
type process struct {
	since time.Time
	uid   string // of its pod; "": none
	nsid  int32
}

const (
	// moves is how long a process may still be on its way to its cgroup and its
	// namespace.
	moves = 2 * time.Second
	// Between two looks for a pod that starts; it gets more with the time that it
	// takes, and so that looking takes a fifth of one CPU at most.
	lookFirst, lookLast = 10 * time.Millisecond, 10 * time.Second
	lookShare           = 4
)

// OpenInhabitants opens a netlink socket in the current network namespace.
func OpenInhabitants(log *slog.Logger) (*Inhabitants, error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := kernel.SetSocketTimeout(10 * time.Second); err != nil {
		kernel.Close()
		return nil, fmt.Errorf("netlink timeout: %w", err)
	}
	h := newInhabitants("/proc", kernel.GetNetNsIdByPid, log)
	h.kernel = kernel
	return h, nil
}

func newInhabitants(proc string, nsidOf func(int) (int, error), log *slog.Logger) *Inhabitants {
	return &Inhabitants{proc: proc, nsidOf: nsidOf, log: log, asked: make(chan struct{}, 1), found: make(chan map[int32][]string, 1),
		seen: map[int]*process{}}
}

// Close closes the socket, after Run has returned.
func (h *Inhabitants) Close() {
	if h.kernel != nil {
		h.kernel.Close()
	}
}

// results has what was found, each time all that is known of the namespaces asked
// for; nil: nobody looks.
func (h *Inhabitants) results() <-chan map[int32][]string {
	if h == nil {
		return nil
	}
	return h.found
}

// ask says whose inhabitants are wanted now, by the number of the namespace.
func (h *Inhabitants) ask(want map[int32]bool) {
	if h == nil {
		return
	}
	h.mu.Lock()
	same := maps.Equal(want, h.want)
	h.want = want
	h.mu.Unlock()
	if same || len(want) == 0 {
		return
	}
	select {
	case h.asked <- struct{}{}:
	default:
	}
}

func (h *Inhabitants) wanted() map[int32]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.want
}

// Run looks, while somebody wants to know, until ctx is done.
func (h *Inhabitants) Run(ctx context.Context) error {
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	var began time.Time
	told := map[int32][]string{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.asked:
			began = time.Now()
		case <-again.C:
		}
		want := h.wanted()
		maps.DeleteFunc(told, func(id int32, _ []string) bool { return !want[id] })
		if len(want) == 0 {
			continue
		}
		start := time.Now()
		all, err := h.look(want)
		if err != nil {
			h.log.Warn("looking whose processes are behind veths", "error", err)
			again.Reset(lookLast)
			continue
		}
		fresh := false
		for id, uids := range all {
			fresh = fresh || !slices.Equal(uids, told[id])
			told[id] = uids
		}
		if fresh {
			select { // what nobody took is part of it
			case <-h.found:
			default:
			}
			h.found <- maps.Clone(told)
		}
		pause := min(max(time.Since(began)/8, lookFirst), lookLast)
		again.Reset(max(pause, lookShare*time.Since(start)))
	}
}

// look lists, ordered, the UIDs of the pods with processes in each of these
// namespaces, where there are any.
func (h *Inhabitants) look(want map[int32]bool) (map[int32][]string, error) {
	dir, err := os.Open(h.proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	now := time.Now()
	if now.Sub(h.last) > moves {
		clear(h.seen) // their numbers may be others' by now
	}
	h.last = now
	out := map[int32][]string{}
	listed := make(map[int]bool, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		listed[pid] = true
		p := h.seen[pid]
		if p == nil {
			p = &process{since: now}
			h.seen[pid] = p
		} else if now.Sub(p.since) > moves && (p.uid == "" || !want[p.nsid]) {
			continue
		}
		h.inspect(dir, pid, p)
		if p.uid != "" && want[p.nsid] && !slices.Contains(out[p.nsid], p.uid) {
			out[p.nsid] = append(out[p.nsid], p.uid)
		}
	}
	maps.DeleteFunc(h.seen, func(pid int, _ *process) bool { return !listed[pid] })
	for _, uids := range out {
		slices.Sort(uids)
	}
	return out, nil
}

// inspect reads of which pod a process is, and in which namespace. It is one
// process that both is said of: a descriptor of its directory is, and does not
// become another's with the number.
func (h *Inhabitants) inspect(proc *os.File, pid int, p *process) {
	p.uid = ""
	fd, err := unix.Openat(int(proc.Fd()), strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // it has ended
	}
	defer func() { _ = unix.Close(fd) }()
	uid := podOfCgroup(readAt(fd, "cgroup"))
	if uid == "" {
		return
	}
	nsid, err := h.nsidOf(pid)
	if err == nil && nsid >= 0 && podOfCgroup(readAt(fd, "cgroup")) == uid {
		p.uid, p.nsid = uid, int32(nsid)
	}
}

// readAt reads a small file; "" if it can't be read.
func readAt(dir int, name string) string {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return ""
	}
	return string(text)
}

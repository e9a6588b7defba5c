package endpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// destroyer ends the UDP sockets that were connected to a backend, by way of a
// service, which does not serve any more: nothing else would tell them, and they
// would go on sending there (DNS above all). TCP learns it from its peer, and
// unconnected sockets are sent elsewhere with their next datagram. Pods' network
// namespaces are found among those that have a name, and by their processes.
type destroyer struct {
	kernel *bpf.Services

	mu        sync.Mutex
	gone      map[bpf.Member]bool
	running   bool
	destroyed uint64
	err       error
}

// later notes backends whose sockets are to end.
func (d *destroyer) later(gone []bpf.Member) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range gone {
		if d.gone == nil {
			d.gone = map[bpf.Member]bool{}
		}
		d.gone[m] = true
	}
}

func (d *destroyer) count() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.destroyed
}

func (d *destroyer) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// orphans lists what sockets were sent to that serves no service any more.
func orphans(scan func(func(bpf.Sent, bpf.Named)) error, members map[bpf.Member]uint32) (out []bpf.Member, err error) {
	err = scan(func(s bpf.Sent, named bpf.Named) {
		m := bpf.Member{Service: named.Service, Backend: s.Backend}
		if _, serves := members[m]; !serves {
			out = append(out, m)
		}
	})
	return out, err
}

// run ends them, beside what its caller does.
func (d *destroyer) run(log *slog.Logger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running || len(d.gone) == 0 {
		return
	}
	gone := d.gone
	d.gone, d.running = nil, true
	go func() {
		n, err := d.destroy(gone)
		if err != nil {
			log.Warn("sockets that are connected to backends which went may go on sending there", "error", err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.destroyed += n
		d.err, d.running = err, false
	}()
}

func (d *destroyer) destroy(gone map[bpf.Member]bool) (n uint64, err error) {
	// Socket cookies, by where they are connected to.
	cookies := map[uint64]map[netip.AddrPort]bool{}
	err = d.kernel.Reverse.Scan(func(s bpf.Sent, named bpf.Named) {
		if gone[bpf.Member{Service: named.Service, Backend: s.Backend}] {
			if cookies[s.Socket] == nil {
				cookies[s.Socket] = map[netip.AddrPort]bool{}
			}
			cookies[s.Socket][s.Backend.AddrPort()] = true
		}
	})
	if err != nil || len(cookies) == 0 {
		return 0, err
	}
	files, err := openNamespaces()
	failed := []error{err}
	for _, f := range files {
		found, err := destroyIn(f, cookies)
		n += found
		failed = append(failed, err)
		f.Close()
	}
	return n, errors.Join(failed...)
}

// namedNamespaces is where runtimes keep pods' network namespaces. Those of
// processes are behind links in /proc that only CAP_SYS_PTRACE follows.
const namedNamespaces = "/run/netns"

// openNamespaces opens the network namespaces that there are but our own, each
// once. An error tells of those that can't be opened; the others are open all the
// same.
func openNamespaces() (out []*os.File, err error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer kernel.Close()
	var own unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return nil, fmt.Errorf("look for network namespaces: %w", err)
	}
	seen := map[uint64]bool{own.Ino: true}
	opened, refused := map[int]bool{}, map[int]bool{} // by the numbers that veths have them by
	if id, err := kernel.GetNetNsIdByPid(os.Getpid()); err == nil && id >= 0 {
		opened[id] = true
	}
	open := func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		var in unix.Statfs_t
		if unix.Fstatfs(int(f.Fd()), &in) != nil || in.Type != unix.NSFS_MAGIC || unix.Fstat(int(f.Fd()), &st) != nil || seen[st.Ino] {
			return f.Close()
		}
		seen[st.Ino] = true
		if id, err := kernel.GetNetNsIdByFd(int(f.Fd())); err == nil && id >= 0 {
			opened[id] = true
		}
		out = append(out, f)
		return nil
	}
	named, _ := filepath.Glob(filepath.Join(namedNamespaces, "*")) // the pattern is right
	for _, path := range named {
		_ = open(path) // it has just gone, or is nothing of the kind
	}
	err = eachProcess(kernel, func(pid, space int) {
		if opened[space] {
			return
		}
		path := filepath.Join("/proc", strconv.Itoa(pid), "ns/net")
		if err := open(path); errors.Is(err, fs.ErrPermission) && space >= 0 {
			refused[space] = true
		}
	})
	if err != nil {
		return out, err
	}
	maps.DeleteFunc(refused, func(id int, _ bool) bool { return opened[id] })
	if len(refused) > 0 {
		return out, fmt.Errorf("%d network namespaces are not in %s, and without CAP_SYS_PTRACE can't be entered by their processes", len(refused), namedNamespaces)
	}
	return out, nil
}

// destroyIn ends those of the sockets that are in this namespace.
func destroyIn(netns *os.File, cookies map[uint64]map[netip.AddrPort]bool) (n uint64, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with this goroutine, wherever it is.
		runtime.LockOSThread()
		if err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter network namespace %s: %w", netns.Name(), err)
			return
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			var sockets []*netlink.Socket
			if sockets, err = netlink.SocketDiagUDP(family); err != nil {
				err = fmt.Errorf("list UDP sockets: %w", err)
				return
			}
			for _, s := range sockets {
				remote, ok := netip.AddrFromSlice(s.ID.Destination)
				cookie := uint64(s.ID.Cookie[0]) | uint64(s.ID.Cookie[1])<<32
				if !ok || !cookies[cookie][netip.AddrPortFrom(remote.Unmap(), s.ID.DestinationPort)] {
					continue
				}
				if err = destroySocket(s); err != nil {
					return
				}
				n++
			}
		}
	}()
	<-done
	return n, err
}

// sockDestroy is SOCK_DESTROY of linux/sock_diag.h.
const sockDestroy = 21

// destroySocket lets a socket's next call fail, and takes its peer away. One
// that has gone is not an error.
func destroySocket(s *netlink.Socket) error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddData(socketRequest{s})
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("destroy socket %v:%d to %v:%d: %w", s.ID.Source, s.ID.SourcePort, s.ID.Destination, s.ID.DestinationPort, err)
	}
	return nil
}

// socketRequest is struct inet_diag_req_v2 for one UDP socket.
type socketRequest struct{ s *netlink.Socket }

func (socketRequest) Len() int { return 56 }

func (r socketRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0] = r.s.Family
	b[1] = unix.IPPROTO_UDP
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // states: all
	id := b[8:]
	binary.BigEndian.PutUint16(id, r.s.ID.SourcePort)
	binary.BigEndian.PutUint16(id[2:], r.s.ID.DestinationPort)
	copy(id[4:20], addressBytes(r.s.ID.Source, r.s.Family))
	copy(id[20:36], addressBytes(r.s.ID.Destination, r.s.Family))
	binary.NativeEndian.PutUint32(id[36:], r.s.ID.Interface)
	binary.NativeEndian.PutUint32(id[40:], r.s.ID.Cookie[0])
	binary.NativeEndian.PutUint32(id[44:], r.s.ID.Cookie[1])
	return b
}

func addressBytes(ip []byte, family uint8) []byte {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return nil
	}
	if family == unix.AF_INET {
		a = a.Unmap()
		return a.AsSlice()
	}
	b := a.As16()
	return b[:]
}

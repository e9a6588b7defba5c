package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Keys and values of the tables of services, as service.h lays them out.
type (
	// ServiceKey is an address and port that sockets name; the port is in network
	// byte order.
	ServiceKey = serviceServiceKey
	Service    = serviceService
	Slot       = serviceSlot
	// Backend is who serves; the port is in network byte order.
	Backend     = serviceBackend
	Member      = serviceMember
	Sent        = serviceSent
	Named       = serviceNamed
	ServiceAddr = serviceAddr
)

// Values of Services.Members.
const (
	MemberReady    uint32 = 1
	MemberDraining uint32 = 2 // none begin there, who is there stays
)

// ServicesStaleAfter is how old the last Alive may be before the programs leave
// everything to kube-proxy: stale_after in service.h, which says why.
const ServicesStaleAfter = 10 * time.Second

// ServicesOptions are those of Services.
type ServicesOptions struct {
	// Pins is the directory of the Datapath.
	Pins string
	// Reverse is how many sockets are remembered with what they named; 0: 131072,
	// about 100 bytes each at once. The oldest make room.
	Reverse uint32
	// Logger may be nil.
	Logger *slog.Logger
}

// Services is the kernel's side of services: the tables that say where their
// addresses lead, and the programs at the sockets of a cgroup. They are apart
// from the Datapath, so that policy is enforced also where these can't be had.
// The tables are safe for concurrent use, Attach is serialised here.
type Services struct {
	Services Table[ServiceKey, Service]
	Backends Table[Slot, Backend]
	Members  Table[Member, uint32]
	Nodes    Table[ServiceAddr, uint32] // addresses that serve node ports; any value
	Reverse  Table[Sent, Named]         // the kernel writes it

	pins    string
	log     *slog.Logger
	objects serviceObjects
	paths   map[string]string
	guard   *serviceGuard // mapped
	mapped  []byte
	mu      sync.Mutex // attachments
}

// LoadServices opens the tables pinned below Pins, making those that are not
// there, and loads the programs. What a predecessor attached goes on with its
// own until Attach. Sockets of the network namespace it is called in are left
// alone from now on.
func LoadServices(o ServicesOptions) (_ *Services, err error) {
	for _, dir := range []string{servicesDir, serviceLinksDir} {
		if err := os.MkdirAll(filepath.Join(o.Pins, dir), 0o700); err != nil {
			return nil, fmt.Errorf("load services: %w", err)
		}
	}
	s := &Services{pins: o.Pins, log: o.Logger, paths: map[string]string{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	spec, err := loadService()
	if err != nil {
		return nil, fmt.Errorf("read the built-in eBPF object: %w", err)
	}
	if o.Reverse != 0 {
		spec.Maps["reverse"].MaxEntries = o.Reverse
	}
	shared, _, err := adoptMaps(o.Pins, servicesDir, spec, s.paths)
	defer func() {
		for _, m := range shared {
			letGo(m) // the collection holds clones
		}
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&s.objects, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
		return nil, fmt.Errorf("load programs of services: %w", err)
	}
	s.Services = Table[ServiceKey, Service]{"services", s.objects.Services}
	s.Backends = Table[Slot, Backend]{"backends", s.objects.Backends}
	s.Members = Table[Member, uint32]{"members", s.objects.Members}
	s.Nodes = Table[ServiceAddr, uint32]{"nodes", s.objects.Nodes}
	s.Reverse = Table[Sent, Named]{"reverse", s.objects.Reverse}
	mem, err := unix.Mmap(s.objects.serviceMaps.Guard.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map table guard: %w", err)
	}
	s.mapped, s.guard = mem, (*serviceGuard)(unsafe.Pointer(&mem[0]))
	own, err := netnsCookie()
	if err != nil {
		return nil, fmt.Errorf("tell the node's sockets from pods': %w", err)
	}
	atomic.StoreUint64(&s.guard.Host, own)
	return s, nil
}

// Close lets go of tables and programs. What is pinned and attached stays, until
// the last Alive is ServicesStaleAfter old.
func (s *Services) Close() error {
	var failed []error
	if s.mapped != nil {
		failed = append(failed, unix.Munmap(s.mapped))
		s.mapped, s.guard = nil, nil
	}
	if s.objects.Connect4 != nil {
		failed = append(failed, s.objects.Close())
	}
	return errors.Join(failed...)
}

// Alive says that the tables are as they should be, for ServicesStaleAfter.
func (s *Services) Alive() {
	var now unix.Timespec
	// Can't fail: there is such a clock, and room for its answer.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	atomic.StoreUint64(&s.guard.Alive, uint64(now.Nano()))
}

// SinceAlive is how long ago the last Alive was, a predecessor's included, and
// whether there was one since the machine started. Beyond ServicesStaleAfter the
// programs leave everything to kube-proxy.
func (s *Services) SinceAlive() (time.Duration, bool) {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // as in Alive
	last := atomic.LoadUint64(&s.guard.Alive)
	return time.Duration(uint64(now.Nano()) - last), last != 0
}

// With lets AttachProxy tell services of the proxies' namespaces. Call it before
// the first proxy is attached, if at all.
func (d *Datapath) With(s *Services) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.services = s
}

// LeaveAlone has nothing translated for the sockets of a proxy's namespace:
// what it connects to is what the pod sent to. A generation has one namespace.
func (s *Services) LeaveAlone(generation uint8, netns *os.File) error {
	cookie, err := netnsCookieOf(netns)
	if err != nil {
		return fmt.Errorf("leave the sockets of proxy %d alone: %w", generation, err)
	}
	aside := Table[uint64, uint32]{"aside", s.objects.Aside}
	rows, err := aside.Snapshot()
	if err != nil {
		return err
	}
	if err := aside.Update(cookie, uint32(generation)); err != nil {
		return err
	}
	for c, g := range rows {
		if c != cookie && g == uint32(generation) { // of an earlier life
			err = errors.Join(err, aside.Delete(c))
		}
	}
	return err
}

// ServiceCounts count what became of sockets that named a service.
type ServiceCounts struct {
	Translated uint64 // connections, and datagrams of unconnected sockets
	Refused    uint64 // no backend
	Stale      uint64 // left to kube-proxy: no agent kept the tables
	Missing    uint64 // left to kube-proxy: a slot was empty, a table full
}

// Counts reads them, summed over the CPUs.
func (s *Services) Counts() (ServiceCounts, error) {
	var sums [serviceServiceCountSERVICE_COUNTS]uint64
	for i := range sums {
		var perCPU []uint64
		if err := s.objects.ServiceCounts.Lookup(uint32(i), &perCPU); err != nil {
			return ServiceCounts{}, fmt.Errorf("read table service_counts: %w", err)
		}
		for _, n := range perCPU {
			sums[i] += n
		}
	}
	return ServiceCounts{
		sums[serviceServiceCountSERVICE_TRANSLATED], sums[serviceServiceCountSERVICE_REFUSED],
		sums[serviceServiceCountSERVICE_STALE], sums[serviceServiceCountSERVICE_MISSING],
	}, nil
}

// ServiceKeyOf is what sockets name. The unspecified address stands for all that
// are in Services.Nodes, of its family.
func ServiceKeyOf(at netip.AddrPort, protocol uint8) ServiceKey {
	return ServiceKey{Addr: ServiceAddr(AddrOf(at.Addr())), Port: swap16(at.Port()), Proto: protocol}
}

// BackendOf converts an address and port.
func BackendOf(at netip.AddrPort) Backend {
	return Backend{Addr: ServiceAddr(AddrOf(at.Addr())), Port: swap16(at.Port())}
}

// AddrPort converts it back.
func (b serviceBackend) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(Addr(b.Addr).Netip(), swap16(b.Port))
}

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Options of a Datapath.
type Options struct {
	// Pins is a directory on a bpffs (see MountPins). All state is below it, so
	// one directory is one datapath; a node has one.
	Pins  string
	Sizes Sizes
	// ForceClsact attaches with clsact filters also where the kernel has tcx.
	ForceClsact bool
	// EventLimit is how many drops, and how many other verdicts, are told one by
	// one per CPU and 100 ms; 0 means 500. All are counted.
	EventLimit uint32
	// Logger may be nil.
	Logger *slog.Logger
}

// Sizes are entries of tables, and bytes of the ring buffer. 0 means the
// default. A change takes effect as a change of layout does: the table is made
// anew and what the kernel kept in it is lost.
type Sizes struct {
	Endpoints uint32 // addresses of pods of this node; 16384
	Devices   uint32 // 8192
	IPCache   uint32 // prefixes; 524288
	FQDN      uint32 // addresses; 524288, taken as they come
	Policies  uint32 // distinct policies; 16384
	Policy    uint32 // entries of all policies; 1048576, taken as they come
	Conntrack uint32 // flows; 262144, about 180 bytes each at once; the oldest make room
	Conns     uint32 // flows through the proxy; 65536, about 150 bytes each at once
	Fragments uint32 // datagrams in fragments; 8192
	Numbers   uint32 // 1048576, taken as they come
	Events    uint32 // bytes, a power of two and whole pages; 4194304
}

// Datapath is the kernel's side of Weir on this node: the tables, and the
// programs on the pods' and proxies' interfaces. The tables, the reader
// functions and State are safe for concurrent use; attaching and detaching
// are serialised here.
type Datapath struct {
	Endpoints Table[Addr, Endpoint]
	Devices   Table[uint32, Device] // by ifindex of the host side
	IPCache   Table[Prefix, Peer]
	Fronts    Table[FrontKey, Front]
	FQDN      Table[Addr, uint32]   // identity; believed if it is in Names
	Names     Table[uint32, uint32] // identities of names; any value
	Pairs     Table[Pair, uint32]   // identity
	Policies  Table[uint32, PolicyInfo]
	Policy    Table[PolicyKey, PolicyEntry]
	Conntrack Table[Tuple, Conntrack]
	Conns     Table[Tuple, Conn]
	Shares    Table[uint32, Share] // by ifindex of the host side; only the kernel writes it
	Grants    Table[uint32, Grant] // the same key; proxies write it
	Proxies   Table[uint32, Proxy] // by generation, 0 to 255; an array: all keys are always there
	Numbers   Table[Number, Digest]
	Host      Table[uint32, Host] // one row, of key 0

	opts    Options
	log     *slog.Logger
	objects datapathObjects
	paths   map[string]string // table name to pin
	// conntrack was made by this Load, so all connections are unknown to it.
	emptyConntrack bool
	freshState     bool // made by this Load, too
	severed        bool
	state          *State // mapped
	mapped         []byte
	revision       revisionCopy
	services       *Services  // or nil, see With
	mu             sync.Mutex // attachments
}

// Load opens the tables pinned below Options.Pins, making those that are not
// there, and loads the programs. What a predecessor attached goes on with the
// predecessor's programs until Activate.
func Load(o Options) (_ *Datapath, err error) {
	if on, err := onBPFFS(o.Pins); err != nil {
		return nil, fmt.Errorf("load datapath: %w", err)
	} else if !on {
		return nil, fmt.Errorf("load datapath: %s is not on a bpffs", o.Pins)
	}
	for _, dir := range []string{mapsDir, linksDir, proxiesDir} {
		if err := os.MkdirAll(filepath.Join(o.Pins, dir), 0o700); err != nil {
			return nil, fmt.Errorf("load datapath: %w", err)
		}
	}
	d := &Datapath{opts: o, log: o.Logger, paths: map[string]string{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	spec, err := loadDatapath()
	if err != nil {
		return nil, fmt.Errorf("read the built-in eBPF object: %w", err)
	}
	o.Sizes.apply(spec)
	if err := spec.Variables["conns_share"].Set(ConnsShare(spec.Maps["conns"].MaxEntries)); err != nil {
		return nil, fmt.Errorf("set a pod's share of conns: %w", err)
	}
	if o.EventLimit != 0 {
		if err := spec.Variables["event_limit"].Set(o.EventLimit); err != nil {
			return nil, fmt.Errorf("limit events: %w", err)
		}
	}
	if err := spec.Variables["event_wake"].Set(uint64(spec.Maps["events"].MaxEntries / 4)); err != nil {
		return nil, fmt.Errorf("set when the reader of events is woken: %w", err)
	}

	shared, made, err := adoptMaps(o.Pins, mapsDir, spec, d.paths)
	defer func() {
		for _, m := range shared {
			letGo(m) // the collection holds clones
		}
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err != nil {
		return nil, err
	}
	d.emptyConntrack, d.freshState = made["conntrack"], made["state"]
	if err := spec.LoadAndAssign(&d.objects, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
		err = fmt.Errorf("load programs: %w", err)
		if v := new(ebpf.VerifierError); errors.As(err, &v) {
			err = fmt.Errorf("%w\n%s", err, strings.Join(v.Log, "\n"))
		}
		return nil, err
	}
	if err := d.mapState(); err != nil {
		return nil, err
	}
	if err := d.mapRevision(); err != nil {
		return nil, err
	}
	if d.severed, err = d.isSevered(); err != nil {
		return nil, err
	}
	d.Endpoints = Table[Addr, Endpoint]{"endpoints", d.objects.Endpoints}
	d.Devices = Table[uint32, Device]{"devices", d.objects.Devices}
	d.IPCache = Table[Prefix, Peer]{"ipcache", d.objects.Ipcache}
	d.Fronts = Table[FrontKey, Front]{"fronts", d.objects.Fronts}
	d.FQDN = Table[Addr, uint32]{"fqdn", d.objects.Fqdn}
	d.Names = Table[uint32, uint32]{"names", d.objects.Names}
	d.Pairs = Table[Pair, uint32]{"pairs", d.objects.Pairs}
	d.Policies = Table[uint32, PolicyInfo]{"policies", d.objects.Policies}
	d.Policy = Table[PolicyKey, PolicyEntry]{"policy", d.objects.Policy}
	d.Conntrack = Table[Tuple, Conntrack]{"conntrack", d.objects.Conntrack}
	d.Conns = Table[Tuple, Conn]{"conns", d.objects.Conns}
	d.Shares = Table[uint32, Share]{"shares", d.objects.Shares}
	d.Grants = Table[uint32, Grant]{"grants", d.objects.Grants}
	d.Proxies = Table[uint32, Proxy]{"proxies", d.objects.Proxies}
	d.Host = Table[uint32, Host]{"host", d.objects.datapathMaps.Host}
	d.Numbers = Table[Number, Digest]{"numbers", d.objects.Numbers}
	return d, nil
}

// isData tells the maps that hold a program's constants from the tables.
func isData(name string) bool { return name[0] == '.' }

func (s Sizes) apply(spec *ebpf.CollectionSpec) {
	for name, n := range map[string]uint32{
		"endpoints": s.Endpoints, "devices": s.Devices, "ipcache": s.IPCache, "fqdn": s.FQDN,
		"policies": s.Policies, "policy": s.Policy, "conntrack": s.Conntrack, "conns": s.Conns,
		"fragments": s.Fragments, "numbers": s.Numbers, "events": s.Events,
	} {
		if n != 0 {
			spec.Maps[name].MaxEntries = n
		}
	}
}

// Close lets go of the tables and programs. What is pinned and attached stays
// and enforces.
func (d *Datapath) Close() error {
	var failed []error
	if d.mapped != nil {
		failed = append(failed, unix.Munmap(d.mapped))
		d.mapped, d.state = nil, nil
	}
	failed = append(failed, d.revision.close())
	if d.objects.FromPod != nil {
		failed = append(failed, d.objects.Close())
	}
	return errors.Join(failed...)
}

func (d *Datapath) mapState() error {
	mem, err := unix.Mmap(d.objects.datapathMaps.State.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map table state: %w", err)
	}
	d.mapped = mem
	d.state = (*State)(unsafe.Pointer(&mem[0]))
	if d.freshState {
		if err := d.inheritState(); err != nil {
			// Flows that need the proxy wait for it to be made current again.
			d.log.Warn("which proxy was current is not known any more", "error", err)
		}
	}
	if d.emptyConntrack {
		d.beLenient()
	}
	return nil
}

// midstreamGrace is how long connections that are older than conntrack have to
// show themselves, see State.MidstreamUntil.
const midstreamGrace = 5 * time.Minute

// beLenient begins that time.
func (d *Datapath) beLenient() {
	var now unix.Timespec
	// Can't fail: there is such a clock, and room for its answer.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	atomic.StoreUint64(&d.state.MidstreamUntil, uint64(now.Nano())+uint64(midstreamGrace))
}

// Revision is the policy revision that packets are judged at.
func (d *Datapath) Revision() uint32 { return atomic.LoadUint32(&d.state.Revision) }

// BumpRevision makes every flow's next forward packet be judged anew, and
// returns the new revision. Call it after a batch of changes, deletes
// included.
func (d *Datapath) BumpRevision() uint32 { return d.revision.bump(&d.state.Revision) }

// Generation is the proxy that new flows go to.
func (d *Datapath) Generation() uint8 { return uint8(atomic.LoadUint32(&d.state.Generation)) }

// SetGeneration sends new flows to another proxy. Its entry in Proxies and its
// attachment come first.
func (d *Datapath) SetGeneration(generation uint8) {
	atomic.StoreUint32(&d.state.Generation, uint32(generation))
}

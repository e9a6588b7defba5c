package endpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Veth is an interface of this network namespace whose peer is in another.
type Veth struct {
	Ifindex int
	Name    string
	MTU     int
	HostMAC [6]byte
	PodMAC  [6]byte // of the peer
	// Ours: it leads to a proxy of Weir's.
	Ours bool
	// Space is the number of its peer's namespace, as the kernel knows it here.
	Space int32
	// Addresses that the peer has; Nearby those of other interfaces in its
	// namespace.
	Addresses, Nearby []netip.Addr
}

// Veths finds the veths of the network namespace it was opened in and the
// addresses behind them, by netlink alone: no process of the pod, no file of
// the container runtime is needed. It knows that namespace's own addresses, too.
// Scan must not be called concurrently.
type Veths struct {
	requests *nl.NetlinkSocket
	handles  map[int]*nl.SocketHandle
	events   *os.File

	spaces map[int32]*space // by nsid
	known  map[int]hostVeth // by ifindex, as of the last Scan
	host   []netip.Addr     // of this namespace, as of the last HostAddresses
	subnet map[int]bool     // likewise: interfaces of it with an address in a subnet

	changed   chan struct{}
	mu        sync.Mutex
	stale     map[int32]bool // spaces to read again
	hostStale bool           // this one's addresses are to be read again
	all       bool           // read everything again
}

// space is what was found in one other namespace.
type space struct {
	mac       map[int][6]byte // by ifindex
	addresses []placed
}

type placed struct {
	ifindex int
	addr    netip.Addr
}

type hostVeth struct {
	name  string
	mtu   int
	mac   [6]byte
	peer  int
	space int32
	ours  bool
}

// OpenVeths opens the netlink sockets in the current network namespace.
func OpenVeths() (*Veths, error) {
	s, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	// Without it the kernel ignores the namespace a dump asks for and answers
	// with this one's addresses.
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		s.Close()
		return nil, fmt.Errorf("netlink strict checking: %w", err)
	}
	timeout := unix.Timeval{Sec: 10}
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		s.Close()
		return nil, err
	}
	events, err := subscribe()
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("subscribe to link events: %w", err)
	}
	return &Veths{
		requests: s,
		handles:  map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}},
		events:   events,
		spaces:   map[int32]*space{},
		changed:  make(chan struct{}, 1),
		stale:    map[int32]bool{}, hostStale: true,
		all: true,
	}, nil
}

// Close closes the sockets; Run returns.
func (v *Veths) Close() {
	v.requests.Close()
	v.events.Close()
}

// Scan returns the veths there are now, by ifindex. Only what changed since
// the last call is read from the kernel, apart from the list of links.
func (v *Veths) Scan() (map[int]Veth, error) {
	v.mu.Lock()
	all, stale := v.all, v.stale
	v.all, v.stale = false, map[int32]bool{}
	v.mu.Unlock()

	links, err := v.links()
	if err != nil {
		v.mu.Lock()
		v.all = true
		v.mu.Unlock()
		return nil, fmt.Errorf("list links: %w", err)
	}
	used := map[int32]bool{}
	for index, l := range links {
		used[l.space] = true
		// The number of a namespace that went may stand for another now.
		if v.known[index] != l {
			stale[l.space] = true
		}
	}
	for id := range v.spaces {
		if !used[id] {
			delete(v.spaces, id)
		}
	}
	var failed error
	for id := range used {
		if v.spaces[id] != nil && !all && !stale[id] {
			continue
		}
		sp, err := v.read(id)
		if err != nil {
			// Gone in between, or a namespace we may not look into: the next
			// event or scan tries again.
			failed = errors.Join(failed, fmt.Errorf("read addresses of namespace %d: %w", id, err))
			v.mu.Lock()
			v.stale[id] = true
			v.mu.Unlock()
			sp = &space{}
		}
		v.spaces[id] = sp
	}
	v.known = links
	return v.result(links), failed
}

func (v *Veths) result(links map[int]hostVeth) map[int]Veth {
	out := make(map[int]Veth, len(links))
	for index, l := range links {
		sp := v.spaces[l.space]
		d := Veth{Ifindex: index, Name: l.name, MTU: l.mtu, Ours: l.ours, Space: l.space, HostMAC: l.mac, PodMAC: sp.mac[l.peer]}
		for _, p := range sp.addresses {
			if p.ifindex == l.peer {
				d.Addresses = append(d.Addresses, p.addr)
			} else {
				d.Nearby = append(d.Nearby, p.addr)
			}
		}
		slices.SortFunc(d.Addresses, netip.Addr.Compare)
		slices.SortFunc(d.Nearby, netip.Addr.Compare)
		out[index] = d
	}
	return out
}

// proxyAlias is how the alias of the interfaces begins that package redirect
// makes, for whatever state.
const proxyAlias = "weir proxy of state "

// skipStats is RTEXT_FILTER_SKIP_STATS of the kernel's rtnetlink.h.
const skipStats = 1 << 3

func (v *Veths) dump(kind int, answer uint16, header nl.NetlinkRequestData, attrs []*nl.RtAttr, each func(header []byte, attrs map[uint16][]byte)) error {
	for try := 0; ; try++ {
		req := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
		req.Sockets = v.handles
		req.AddData(header)
		for _, a := range attrs {
			req.AddData(a)
		}
		msgs, err := req.Execute(unix.NETLINK_ROUTE, answer)
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 3 {
			continue
		}
		if err != nil {
			return err
		}
		size := header.Len()
		for _, m := range msgs {
			if len(m) < size {
				return fmt.Errorf("short netlink message of %d bytes", len(m))
			}
			list, err := nl.ParseRouteAttr(m[size:])
			if err != nil {
				return err
			}
			found := make(map[uint16][]byte, len(list))
			for _, a := range list {
				found[a.Attr.Type&^unix.NLA_F_NESTED] = a.Value
			}
			each(m[:size], found)
		}
		return nil
	}
}

// links lists the veths of this namespace whose peer is in another.
func (v *Veths) links() (map[int]hostVeth, error) {
	out := map[int]hostVeth{}
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats))}
	err := v.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), attrs, func(h []byte, a map[uint16][]byte) {
		id, ok := a[unix.IFLA_LINK_NETNSID]
		if !ok || len(id) < 4 || linkKind(a[unix.IFLA_LINKINFO]) != "veth" {
			return
		}
		l := hostVeth{name: nl.BytesToString(a[unix.IFLA_IFNAME]), space: int32(binary.NativeEndian.Uint32(id))}
		l.ours = strings.HasPrefix(string(a[unix.IFLA_IFALIAS]), proxyAlias)
		copy(l.mac[:], a[unix.IFLA_ADDRESS])
		if mtu := a[unix.IFLA_MTU]; len(mtu) >= 4 {
			l.mtu = int(binary.NativeEndian.Uint32(mtu))
		}
		if peer := a[unix.IFLA_LINK]; len(peer) >= 4 {
			l.peer = int(int32(binary.NativeEndian.Uint32(peer)))
		}
		out[int(nl.DeserializeIfInfomsg(h).Index)] = l
	})
	return out, err
}

func linkKind(info []byte) string {
	attrs, err := nl.ParseRouteAttr(info)
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_INFO_KIND {
			return nl.BytesToString(a.Value)
		}
	}
	return ""
}

// read lists the links and addresses of another namespace.
func (v *Veths) read(id int32) (*space, error) {
	sp := &space{mac: map[int][6]byte{}}
	attrs := []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))),
		nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)),
	}
	err := v.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), attrs, func(h []byte, a map[uint16][]byte) {
		var mac [6]byte
		copy(mac[:], a[unix.IFLA_ADDRESS])
		sp.mac[int(nl.DeserializeIfInfomsg(h).Index)] = mac
	})
	if err != nil {
		return nil, err
	}
	attrs = []*nl.RtAttr{nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(uint32(id)))}
	err = v.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), attrs, func(h []byte, a map[uint16][]byte) {
		raw := a[unix.IFA_LOCAL] // IPv4, and IPv6 with a peer address
		if raw == nil {
			raw = a[unix.IFA_ADDRESS]
		}
		if addr, ok := netip.AddrFromSlice(raw); ok {
			sp.addresses = append(sp.addresses, placed{int(nl.DeserializeIfAddrmsg(h).Index), addr})
		}
	})
	if err != nil {
		return nil, err
	}
	return sp, nil
}

package redirect

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// peerName is the interface in the proxy's namespace.
const peerName = "eth0"

// veth is the pair that joins a proxy's namespace to the node, seen from the
// node.
type veth struct {
	index   int
	mtu     int
	mac     net.HardwareAddr
	peerMAC net.HardwareAddr
}

// interfaceName is the host side's name: it tells the generation, and states
// other than the usual one are told apart by a suffix.
func interfaceName(state string, generation uint8) string {
	return fmt.Sprintf("weir%d%s", generation, stateSuffix(state))
}

func stateSuffix(state string) string {
	if state == "weir" {
		return ""
	}
	sum := sha256.Sum256([]byte(state))
	return "-" + hex.EncodeToString(sum[:3])
}

// interfaceAlias marks an interface as a state's own.
func interfaceAlias(state string) string { return "weir proxy of state " + state }

// makeVeth makes the pair. The host side has no address and asks for none; one
// that is left from an earlier life with that name goes.
func makeVeth(state string, generation uint8, mtu int, ns *os.File) (*veth, error) {
	if err := errors.Join(removeVeth(state, generation), removePeer(ns)); err != nil {
		return nil, err
	}
	name := interfaceName(state, generation)
	mac, peer, err := macPair()
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, mac
	link := netlink.NewVeth(attrs)
	link.PeerName, link.PeerHardwareAddr, link.PeerMTU = peerName, peer, uint32(mtu)
	link.PeerNamespace = netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("make interface %s: %w", name, err)
	}
	made, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("make interface %s: %w", name, err)
	}
	// No IPv6 address by itself. A machine without IPv6 does not know the
	// setting, and needs none.
	err = netlink.LinkSetIP6AddrGenMode(made, nl6None)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		return nil, errors.Join(fmt.Errorf("make interface %s without addresses: %w", name, err), netlink.LinkDel(made))
	}
	if err := netlink.LinkSetAlias(made, interfaceAlias(state)); err != nil {
		return nil, errors.Join(fmt.Errorf("mark interface %s: %w", name, err), netlink.LinkDel(made))
	}
	if err := netlink.LinkSetUp(made); err != nil {
		return nil, errors.Join(fmt.Errorf("interface %s up: %w", name, err), netlink.LinkDel(made))
	}
	return &veth{index: made.Attrs().Index, mtu: mtu, mac: mac, peerMAC: peer}, nil
}

// removePeer removes the pair of an agent that died before it told the proxy.
func removePeer(ns *os.File) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return fmt.Errorf("look into the proxy's namespace: %w", err)
	}
	defer h.Close()
	peer, err := h.LinkByName(peerName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(peer)
	}
	if err != nil {
		return fmt.Errorf("remove %s of the proxy: %w", peerName, err)
	}
	return nil
}

// nl6None is IN6_ADDR_GEN_MODE_NONE.
const nl6None = 1

// findVeth finds the host side of a generation's pair, and sees to it that it
// is up.
func findVeth(state string, generation uint8) (*veth, error) {
	name := interfaceName(state, generation)
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	a := link.Attrs()
	if a.Alias != interfaceAlias(state) {
		return nil, fmt.Errorf("interface %s is not ours", name)
	}
	// It is looked for every second: the kernel is not locked for nothing.
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("interface %s up: %w", name, err)
		}
	}
	return &veth{index: a.Index, mtu: a.MTU, mac: a.HardwareAddr}, nil
}

// peerMAC reads the address of the pair's other side, in the namespace.
func peerMAC(ns *os.File) (net.HardwareAddr, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return nil, fmt.Errorf("look into the proxy's namespace: %w", err)
	}
	defer h.Close()
	peer, err := h.LinkByName(peerName)
	if err != nil {
		return nil, fmt.Errorf("find %s of the proxy: %w", peerName, err)
	}
	return peer.Attrs().HardwareAddr, nil
}

// removeVeth removes a generation's pair, if it is there.
func removeVeth(state string, generation uint8) error {
	name := interfaceName(state, generation)
	link, err := netlink.LinkByName(name)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return deleteLink(link)
}

// removeVeths removes all pairs of a state.
func removeVeths(state string) error {
	links, err := listLinks()
	if err != nil {
		return err
	}
	var failed error
	for _, l := range links {
		a := l.Attrs()
		if l.Type() == "veth" && strings.HasPrefix(a.Name, "weir") && a.Alias == interfaceAlias(state) {
			failed = errors.Join(failed, deleteLink(l))
		}
	}
	return failed
}

// listLinks lists all interfaces. The kernel can't list while they come and
// go, and says so: then it is asked again.
func listLinks() ([]netlink.Link, error) {
	const tries = 100
	for try := 1; ; try++ {
		links, err := netlink.LinkList()
		if err == nil {
			return links, nil
		}
		if try == tries || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}

func deleteLink(l netlink.Link) error {
	// It may go by itself meanwhile, with its namespace.
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// macPair makes two addresses of the kind anyone may make up.
func macPair() (a, b net.HardwareAddr, err error) {
	both := make([]byte, 12)
	if _, err := rand.Read(both); err != nil {
		return nil, nil, fmt.Errorf("make addresses: %w", err)
	}
	a, b = both[:6:6], both[6:]
	a[0], b[0] = a[0]&0xfc|2, b[0]&0xfc|2
	return a, b, nil
}

// SetMTU changes what pods' packets may need at most. It takes effect for the
// running proxies' interfaces, too. (Connections that go on without the proxy
// they began with have agreed on what they need.)
func (m *Manager) SetMTU(mtu int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mtu = mtu
	var failed error
	for _, s := range m.fed {
		if !s.ended() {
			failed = errors.Join(failed, s.setMTU(interfaceName(m.opts.State, s.generation), mtu))
		}
	}
	return failed
}

// setMTU sets that of both sides of the interface pair.
func (s *session) setMTU(name string, mtu int) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(s.netns.Fd()))
	if err != nil {
		return fmt.Errorf("look into the proxy's namespace: %w", err)
	}
	defer h.Close()
	peer, err := h.LinkByName(peerName)
	if err == nil {
		err = h.LinkSetMTU(peer, mtu)
	}
	if err != nil {
		return fmt.Errorf("MTU %d of the proxy's interface: %w", mtu, err)
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("MTU %d of %s: %w", mtu, name, err)
	}
	return nil
}

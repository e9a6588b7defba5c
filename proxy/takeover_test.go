package proxy

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/proxy/control"
)

// TestTakeOverRefuses what a predecessor could say wrongly.
func TestTakeOverRefuses(t *testing.T) {
	client, server := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:80")
	tuple := bpf.TupleOf(client, server, unix.IPPROTO_TCP)
	good := func() *control.Connection {
		return &control.Connection{
			Source: client.Addr().AsSlice(), Destination: server.Addr().AsSlice(),
			SourcePort: 40000, DestinationPort: 80, Id: 5, Generation: 3,
		}
	}
	for name, change := range map[string]func(*control.Connection, *memoryFlows, *[]int){
		"":                   func(*control.Connection, *memoryFlows, *[]int) {},
		"no source":          func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.Source = nil },
		"a long destination": func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.Destination = make([]byte, 17) },
		"two families":       func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.Source = make([]byte, 16) },
		"IPv4 in IPv6 form": func(c *control.Connection, _ *memoryFlows, _ *[]int) {
			c.Source, c.Destination = mapped(client), mapped(server)
		},
		"port 0":                 func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.SourcePort = 0 },
		"port 65536":             func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.DestinationPort = 65536 },
		"another generation":     func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.Generation = 4 },
		"a generation too large": func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.Generation = 259 },
		"another id":             func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.Id = 6 },
		"another flow":           func(c *control.Connection, _ *memoryFlows, _ *[]int) { c.SourcePort = 40001 },
		"no entry":               func(_ *control.Connection, f *memoryFlows, _ *[]int) { delete(f.entries, tuple) },
		"another's entry": func(_ *control.Connection, f *memoryFlows, _ *[]int) {
			f.entries[tuple] = bpf.Conn{Id: 5, Generation: 2}
		},
		"no sockets": func(_ *control.Connection, _ *memoryFlows, fds *[]int) { closeAll(*fds); *fds = nil },
		"one socket": func(_ *control.Connection, _ *memoryFlows, fds *[]int) { closeAll((*fds)[1:]); *fds = (*fds)[:1] },
		"three of them": func(_ *control.Connection, _ *memoryFlows, fds *[]int) {
			*fds = append(*fds, pipeEnd(t))
		},
		"a pipe": func(_ *control.Connection, _ *memoryFlows, fds *[]int) {
			closeAll((*fds)[:1])
			(*fds)[0] = pipeEnd(t)
		},
	} {
		d, flows, _ := newData(t)
		serve(t, d)
		d.checkSocket = func(fd int, local, remote netip.AddrPort) error {
			if err := checkSocket(fd, local, remote); err != nil && !errors.Is(err, errOtherEnds) {
				return err
			}
			return nil
		}
		flows.set(tuple, bpf.Conn{Id: 5, Generation: 3})
		before := openFiles(t)
		c, s := rawSocket(t), rawSocket(t)
		fds := []int{c, s}
		m := good()
		change(m, flows, &fds)
		r := &receiver{dataSide: d}
		d.expect(r, []uint8{3})
		_ = r.adopt(m, fds)
		if got, want := d.counters.takenOver.Load(), uint64(0); name != "" && got != want || name == "" && got != 1 {
			t.Errorf("%s: %d were taken over", name, got)
		}
		for _, p := range d.pairs.all() {
			p.abort()
		}
		if after := openFiles(t); after > before {
			t.Errorf("%s: %d open files, before %d", name, after, before)
		}
	}
}

func mapped(a netip.AddrPort) []byte { b := a.Addr().As16(); return b[:] }

// pipeEnd is a descriptor that is no socket.
func pipeEnd(t *testing.T) int {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fds[1])
	return fds[0]
}

// rawSocket is one end of a connection whose other end is closed.
func rawSocket(t *testing.T) int {
	t.Helper()
	accepted, dialed := tcpPair(t)
	raw, err := accepted.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
	dialed.Close()
	return fd
}

// TestSocketsAreChecked: a connection's ends, its protocol, and that it does not
// block.
func TestSocketsAreChecked(t *testing.T) {
	accepted, dialed := tcpPair(t)
	client, server := ends(accepted)
	fdOf := func(c syscall.Conn) (fd int) {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(f uintptr) { fd = int(f) })
		}
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	if err := errors.Join(checkSocket(fdOf(accepted), server, client), checkSocket(fdOf(dialed), client, server)); err != nil {
		t.Error(err)
	}
	other := netip.AddrPortFrom(client.Addr(), client.Port()+1)
	udp, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(client), net.UDPAddrFromAddrPort(server))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	listener, err := net.ListenTCP("tcp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for name, err := range map[string]error{
		"reversed":         checkSocket(fdOf(accepted), client, server),
		"another client":   checkSocket(fdOf(accepted), server, other),
		"another server":   checkSocket(fdOf(dialed), client, other),
		"datagrams":        checkSocket(fdOf(udp), client, server),
		"a listener":       checkSocket(fdOf(listener), plain(listener.Addr()), client),
		"nothing":          checkSocket(-1, client, server),
		"a file":           checkSocket(0, client, server),
		"closed meanwhile": checkSocket(1<<20, client, server),
	} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzTakeOver: whatever a predecessor says, nothing is taken over without
// sockets, no generation that is none is swept, and nothing panics.
func FuzzTakeOver(f *testing.F) {
	for _, m := range []*control.HandOver{
		{What: &control.HandOver_Predecessor{Predecessor: &control.Predecessor{Boot: "b", Generations: []uint32{3, 1}}}},
		{What: &control.HandOver_LearnedAll{LearnedAll: &control.LearnedAll{}}},
		{What: &control.HandOver_Learned{Learned: &control.Learned{Part: []byte("abc")}}},
		{What: &control.HandOver_Connection{Connection: &control.Connection{
			Source: []byte{10, 0, 0, 1}, Destination: []byte{10, 0, 0, 2}, SourcePort: 1, DestinationPort: 2, Id: 5, Generation: 3, Input: []byte("GET"),
		}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dataSide{
			log: slog.New(slog.DiscardHandler), counters: newCounters(), pairs: newPairTable(),
			flows: &memoryFlows{entries: map[bpf.Tuple]bpf.Conn{}}, checkSocket: checkSocket,
		}
		r := &receiver{dataSide: d, ready: make(chan struct{})}
		_ = r.take(b, nil)
		_ = r.take(b, nil)
		if d.pairs.len() != 0 || d.counters.takenOver.Load() != 0 {
			t.Errorf("%x: a connection without sockets", b)
		}
		d.inherit(r)
		if d.sweeps(0) {
			t.Errorf("%x: generation 0", b)
		}
	})
}

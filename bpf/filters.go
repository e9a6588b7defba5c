package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// filter is what is to be known of anybody's filter of an interface.
type filter struct {
	spot
	protocol uint16
	kind     string // bpf, flower, ...
	name     string // of a bpf one
	id       uint32 // of a bpf one's program
}

// shares tells whether filters of ours can have the same priority.
func (f filter) shares() bool { return f.kind == "bpf" && f.protocol == unix.ETH_P_ALL }

func (f filter) String() string {
	if f.name != "" {
		return fmt.Sprintf("filter %q of priority %d", f.name, f.priority)
	}
	return fmt.Sprintf("filter of kind %s and priority %d", f.kind, f.priority)
}

// listFilters lists the filters on one side of an interface in the order they
// run, those of other chains than the first left out. It understands no more of
// them than it needs, since they may be anybody's. No such interface: none.
func listFilters(ifindex int, a ebpf.AttachType) ([]filter, error) {
	messages, err := whole(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
		req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(ifindex), Parent: parentOf(a)})
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
	})
	if err != nil {
		return nil, fmt.Errorf("list filters of interface %d: %w", ifindex, err)
	}
	var out []filter
	for _, m := range messages {
		f, ok, err := parseFilter(m)
		if err != nil {
			return nil, fmt.Errorf("list filters of interface %d: %w", ifindex, err)
		}
		if ok {
			out = append(out, f)
		}
	}
	return out, nil
}

// parseFilter reads a message of the kernel's. ok is false for what is no filter
// of the first chain.
func parseFilter(m []byte) (f filter, ok bool, err error) {
	if len(m) < nl.SizeofTcMsg {
		return f, false, fmt.Errorf("a message of %d bytes", len(m))
	}
	header := nl.DeserializeTcMsg(m)
	f.handle = header.Handle
	f.priority = uint16(header.Info >> 16)
	f.protocol = nl.Swap16(uint16(header.Info))
	attrs, err := nl.ParseRouteAttr(m[nl.SizeofTcMsg:])
	if err != nil {
		return f, false, err
	}
	first := true
	var options []byte
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case nl.TCA_KIND:
			f.kind = nl.BytesToString(a.Value)
		case nl.TCA_OPTIONS:
			options = a.Value
		case nl.TCA_CHAIN:
			first = len(a.Value) == 4 && binary.NativeEndian.Uint32(a.Value) == 0
		}
	}
	// Handle 0 stands for all filters of a priority.
	if !first || f.handle == 0 {
		return f, false, nil
	}
	if f.kind != "bpf" {
		return f, true, nil
	}
	if attrs, err = nl.ParseRouteAttr(options); err != nil {
		return f, false, err
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.TCA_BPF_NAME:
			f.name = nl.BytesToString(a.Value)
		case nl.TCA_BPF_ID:
			if len(a.Value) == 4 {
				f.id = binary.NativeEndian.Uint32(a.Value)
			}
		}
	}
	return f, true, nil
}

// whole asks for a list again when interfaces came or went while the kernel
// listed: what it gave then is not all.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 100
	for try := 1; ; try++ {
		all, err := list()
		if try == tries || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}

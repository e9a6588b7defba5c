package redirect

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
)

// podConfig is what the agent of this test is told about a pod.
type podConfig struct {
	Addrs           []netip.Addr
	Ifindex         int
	PodMAC, HostMAC net.HardwareAddr
	Egress          bool // what it sends to the ports above goes through the proxy
}

// miniAgent enforces one fixed policy with a real datapath, Manager and proxy.
// It prints records as JSON lines, and answers "conns" with their number,
// "refused" with how many packets were dropped for a pod's share of them, "strays"
// with how many of the proxy's were for want of a flow, "move" when policy is about to move a thousand times within some seconds, and "leave" when the Manager has gone and the proxy is alone.
func miniAgent(ctx context.Context, dir, config string) error {
	var pods []podConfig
	if err := json.Unmarshal([]byte(config), &pods); err != nil {
		return err
	}
	pins := filepath.Join(dir, "bpf")
	if err := bpf.MountPins(pins); err != nil {
		return err
	}
	defer func() { _ = bpf.UnmountPins(pins) }()
	d, err := bpf.Load(bpf.Options{Pins: pins, Sizes: bpf.Sizes{Conns: laneConns, Conntrack: 4096, Policy: 1024}})
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	redirecting := &policy.Resolved{Enforced: [2]bool{policy.Egress: true}, Entries: map[policy.Key]policy.Entry{}}
	for _, port := range []uint16{webPort, deadPort} {
		redirecting.Entries[policy.Key{Direction: policy.Egress, Protocol: unix.IPPROTO_TCP, Port: port, PortBits: 16}] =
			policy.Entry{Action: policy.Redirect, RuleSet: 1}
	}
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, port := range []uint16{dnsPort, deadDNSPort} {
			redirecting.Entries[policy.Key{Direction: policy.Egress, Protocol: protocol, Port: port, PortBits: 16}] =
				policy.Entry{Action: policy.Redirect, RuleSet: 2}
		}
	}
	for id, r := range map[uint32]*policy.Resolved{1: redirecting, 2: {}} {
		if err := d.Policies.Update(id, bpf.PolicyInfoOf(r)); err != nil {
			return err
		}
		for k, e := range r.Entries {
			if err := d.Policy.Update(bpf.PolicyKeyOf(id, k), bpf.PolicyEntryOf(e)); err != nil {
				return err
			}
		}
	}
	out := json.NewEncoder(os.Stdout)
	m := NewManager(Options{
		State: filepath.Base(dir), RunDir: dir, Datapath: d,
		Command: []string{"/proc/self/exe", "proxy", "launch", dir, "proxy", "confine", "serve"},
		Record:  func(r *flow.Record, _ uint32) { _ = out.Encode(r) },
		Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	sets := []*policy.RuleSet{{ID: 1, AllowAll: true}, {
		ID: 2, Protocol: policy.ProtocolDNS, DNS: []dnsrules.Rule{{Selector: dnsrules.Selector{Pattern: "*." + allowedZone}}},
	}}
	if err := m.SetRuleSets(ctx, sets, nil); err != nil {
		return err
	}
	if err := m.Synced(ctx); err != nil {
		return err
	}
	for d.Generation() == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	for i, p := range pods {
		e := bpf.Endpoint{Ifindex: uint32(p.Ifindex), Policy: 2, Identity: uint32(identity.FirstLocal) + uint32(i)}
		if p.Egress {
			e.Policy = 1
		}
		copy(e.PodMac[:], p.PodMAC)
		copy(e.HostMac[:], p.HostMAC)
		for _, a := range p.Addrs {
			if err := d.Endpoints.Update(bpf.AddrOf(a), e); err != nil {
				return err
			}
		}
		if err := d.AttachPod(p.Ifindex); err != nil {
			return err
		}
	}
	d.BumpRevision()
	fmt.Println("ready")
	var moving sync.WaitGroup
	defer moving.Wait()
	in := bufio.NewScanner(os.Stdin)
	leave := sync.OnceValue(func() error { stop(); return <-done })
	for in.Scan() {
		switch in.Text() {
		case "conns":
			var failed error
			n := 0
			for range d.Conns.All(&failed) {
				n++
			}
			fmt.Printf("answer %d %v\n", n, failed)
		case "refused":
			fmt.Println("answer", dropped(d, flow.ReasonConnsShare))
		case "strays":
			fmt.Println("answer", dropped(d, flow.ReasonUDPNoFlow, flow.ReasonProxyUnknownFlow))
		case "move":
			moving.Go(func() {
				for range 1000 {
					d.BumpRevision()
					time.Sleep(time.Millisecond)
				}
			})
			fmt.Println("answer 0", nil)
		case "leave":
			fmt.Printf("answer 0 %v\n", leave())
		}
	}
	return errors.Join(leave(), Remove(context.Background(), filepath.Base(dir), dir, 0))
}

// dropped is how many packets were, for any of these reasons, and an error.
func dropped(d *bpf.Datapath, reasons ...flow.Reason) string {
	counters, err := d.Counters()
	n := uint64(0)
	for _, c := range counters {
		if slices.Contains(reasons, c.Reason) {
			n += c.Packets
		}
	}
	return fmt.Sprintf("%d %v", n, err)
}

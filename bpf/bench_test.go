package bpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/policy"
)

// manyEntries is a policy of 10,000 entries beside those given.
func manyEntries(dir policy.Direction, more rules) rules {
	r := rules{}
	for i := range 5000 {
		r[port(dir, identity.ID(10000+i), tcp, 443)] = allow(uint32(i))
		r[port(dir, identity.ID(10000+i), tcp, 8443)] = allow(uint32(i))
	}
	for k, v := range more {
		r[k] = v
	}
	return r
}

// BenchmarkPrograms measures the programs by the kernel's repeat loop, whose own
// cost "nothing" shows: a program run on ARP, which it lets pass at once.
//
//	established  forward packet, judged at the current revision
//	reply        the same, the other way
//	full         forward packet, judged anew by policy: every table is asked
//	denied       no entry, every table is asked, counted, not told (as most are)
//	redirect     a SYN for the proxy, repeated: judged, entered in two tables
//	question     a datagram of a known flow for the proxy
//	new          the difference that a flow's first packet makes: judged,
//	             entered, counted, told; redirected, to a repeated SYN; of a
//	             session that is known
func BenchmarkPrograms(b *testing.B) {
	k := newKernelOf(b, Sizes{}, 0)
	always := variant(b, k, "always_judge", uint8(1))
	for i := range 20000 {
		a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		k.prefix(netip.PrefixFrom(a, 32), identity.ID(10000+i%5000))
	}
	for _, ip := range []addresses{ipv4, ipv6} {
		from := ip.tcp().with(ack)
		to := packet{src: ip.peer, dst: ip.b, proto: tcp, sport: 1000, dport: 80, flags: ack}
		arp := from
		arp.mangle = func(b []byte) []byte { b[12], b[13] = 8, 6; return b }
		denied := from
		denied.dport = 81
		redirected := ip.tcp()
		redirected.dport = 82
		question := ip.question(1000)
		full := func(a at, p *ebpf.Program) at { a.prog = p; return a }
		k.policy(policyA, manyEntries(out, rules{port(out, idPeer, tcp, 80): allow(1), port(out, idPeer, tcp, 82): l7(2, 1), port(out, idPeer, udp, 53): l7(3, 2)}))
		k.policy(policyB, manyEntries(in, rules{port(in, idPeer, tcp, 80): allow(1)}))
		for _, c := range []struct {
			name string
			at   at
			p    packet
		}{
			{"nothing", k.fromA(), arp},
			{"from_pod established", k.fromA(), from},
			{"to_pod reply", k.toA(), from.reply(ack)},
			{"from_pod full", full(k.fromA(), always["from_pod"]), from},
			{"from_pod denied", k.fromA(), denied},
			{"to_pod established", k.toB(), to},
			{"from_pod reply", k.fromB(), to.reply(ack)},
			{"to_pod full", full(k.toB(), always["to_pod"]), to},
			{"from_pod redirect", k.fromA(), redirected},
			{"from_pod question", k.fromA(), question},
		} {
			b.Run(ip.family+" "+c.name, func(b *testing.B) {
				k.t = b
				k.run(k.fromA(), from.bytes())
				k.run(k.toB(), to.bytes())
				k.run(c.at, c.p.bytes())
				b.ResetTimer()
				k.repeat(b, c.at, c.p, b.N)
				b.StopTimer()
				k.drain()
			})
		}
		b.Run(ip.family+" from_pod new", func(b *testing.B) {
			k.t = b
			k.benchNew(b, ip.tcp())
		})
		b.Run(ip.family+" from_pod new redirect", func(b *testing.B) {
			k.t = b
			k.benchNew(b, redirected)
		})
		b.Run(ip.family+" from_pod new question", func(b *testing.B) {
			k.t = b
			k.benchNew(b, question)
		})
	}
}

// repeat runs a packet n times in the kernel, in short runs, and reports the
// quickest of them: what the others took longer is other people's work.
func (k *kernel) repeat(b *testing.B, a at, p packet, n int) {
	b.Helper()
	const short = 1000
	in := skb{IngressIfindex: uint32(a.ingress), Ifindex: uint32(a.ifindex)}
	data := p.bytes()
	best := time.Hour
	var err error
	k.ns.do(func() {
		for n > 0 && err == nil {
			start := time.Now()
			_, err = a.prog.Run(&ebpf.RunOptions{Data: data, Context: in, Repeat: short})
			best = min(best, time.Since(start))
			n -= short
		}
	})
	k.must(err)
	b.ReportMetric(float64(best.Nanoseconds())/short, "best-ns/op")
}

// benchNew runs first packets of flows one by one, and as many of one flow, and
// reports the difference.
func (k *kernel) benchNew(b *testing.B, first packet) {
	b.Helper()
	const batch = 16000 // no more than one pod's share of conns
	in := skb{Ifindex: uint32(k.podA)}
	var total time.Duration
	n := 0
	for n < max(b.N, batch) {
		empty(k, k.Conntrack)
		k.forgetConns()
		took := [2]time.Duration{}
		for round := range 2 {
			p := first
			var packets [][]byte
			for i := range batch {
				p.sport = 1000
				if round == 1 {
					p.sport += uint16(i + 1)
				}
				packets = append(packets, p.bytes())
			}
			var err error
			k.ns.do(func() {
				start := time.Now()
				for _, data := range packets {
					if _, err = k.objects.FromPod.Run(&ebpf.RunOptions{Data: data, Context: in}); err != nil {
						return
					}
				}
				took[round] = time.Since(start)
			})
			k.must(err)
			k.drain()
		}
		total += took[1] - took[0]
		n += batch
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(n), "more-ns/op")
	b.ReportMetric(0, "ns/op")
}

// variant loads the programs with a constant set, over the same tables.
func variant(t testing.TB, k *kernel, constant string, value any) map[string]*ebpf.Program {
	t.Helper()
	spec, err := loadDatapath()
	k.must(err)
	k.must(spec.Variables[constant].Set(value))
	shared := map[string]*ebpf.Map{}
	for name, path := range k.paths {
		if spec.Maps[name] == nil {
			continue // no program reads it
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		k.must(err)
		shared[name] = m
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	k.must(err)
	t.Cleanup(func() {
		c.Close()
		for _, m := range shared {
			letGo(m)
		}
	})
	return c.Programs
}

// TestProgramSize reports what the programs are for the verifier, and holds
// them far from its limit.
func TestProgramSize(t *testing.T) {
	k := newKernel(t)
	for name, p := range map[string]*ebpf.Program{
		"from_pod": k.objects.FromPod, "to_pod": k.objects.ToPod, "from_proxy": k.objects.FromProxy,
		"from_host": k.objects.FromHost, "to_host": k.objects.ToHost,
	} {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		verified, ok := info.VerifiedInstructions()
		if !ok {
			t.Fatal("the kernel doesn't tell")
		}
		xlated, err := info.Instructions()
		if err != nil {
			t.Fatal(err)
		}
		jited, _ := info.JitedSize()
		t.Logf("%s: %d instructions, %d bytes jited, %d looked at by the verifier", name, len(xlated), jited, verified)
		if verified > 50000 {
			t.Errorf("%s: the verifier looks at %d instructions", name, verified)
		}
	}
}

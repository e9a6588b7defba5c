package redirect

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/weirnet/weir/bpf"
)

// TestProgramsTakenOff: what others take off the proxy's interface and namespace
// is put there again, and told.
func TestProgramsTakenOff(t *testing.T) {
	inNamespace(t, func() {
		dir, pins := setUpPins(t)
		d := loadPinned(t, pins, false)
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		boot := a.status().Boot
		proxyPins := filepath.Join(pins, "proxies", strconv.Itoa(int(g)))
		index := vethIndex(t, g)
		whole := bpf.ProxyPrograms{FromProxy: true, Steer: true, Listeners: true}
		for i, name := range []string{"from_proxy", "steer"} {
			if err := os.Remove(filepath.Join(proxyPins, name)); err != nil {
				t.Fatal(err)
			}
			waitFor(t, name+" again", patience, func() bool {
				p, err := d.CheckProxy(g, index)
				return err == nil && p == whole && a.Tampered().Lost == i+1
			})
			if at := a.Tampered(); at.At.IsZero() || at.Interface != interfaceName("test", g) || at.Overtaken != 0 || at.Now != "" {
				t.Errorf("told %+v", at)
			}
		}
		// Another's, which comes first.
		l := attachFirst(t, index)
		waitFor(t, "Weir's to be first again", patience, func() bool {
			p, err := d.CheckProxy(g, index)
			return err == nil && p == whole && a.Tampered().Overtaken == 1
		})
		if at := a.Tampered(); at.Lost != 2 || !strings.Contains(at.By, "somebody") || at.Now != "" {
			t.Errorf("told %+v", at)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if s := a.status(); s.Boot != boot || d.Generation() != g {
			t.Errorf("another proxy: %v", s)
		}
		// Its listeners can't be given back to it.
		if err := os.Remove(filepath.Join(proxyPins, "listeners")); err != nil {
			t.Fatal(err)
		}
		current(t, d, g)
		if s := a.status(); s.Boot == boot {
			t.Errorf("the same proxy: %v", s)
		}
	})
}

// TestProxyBehindOthers: where Weir's can't be put first, it is told once, and as
// long as it is so.
func TestProxyBehindOthers(t *testing.T) {
	inNamespace(t, func() {
		dir, pins := setUpPins(t)
		d := loadPinned(t, pins, true) // filters, which tcx comes before
		a := startAgent(t, dir, d)
		if err := a.Synced(t.Context()); err != nil {
			t.Fatal(err)
		}
		g := current(t, d, 0)
		l := attachFirst(t, vethIndex(t, g))
		waitFor(t, "word of it", patience, func() bool { return a.Tampered().Now != "" })
		checked := time.Now()
		waitFor(t, "another look", patience, func() bool { return time.Since(checked) > 2*watchEvery })
		if at := a.Tampered(); at.Overtaken != 1 || !strings.HasPrefix(at.Now, interfaceName("test", g)+": tcx program") {
			t.Errorf("told %+v", at)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		waitFor(t, "the end of it", patience, func() bool { return a.Tampered().Now == "" })
	})
}

func vethIndex(t *testing.T, g uint8) int {
	t.Helper()
	v, err := findVeth("test", g)
	if err != nil {
		t.Fatal(err)
	}
	return v.index
}

// attachFirst puts somebody's program, which lets everything pass, before all
// others on what comes in at an interface.
func attachFirst(t *testing.T, index int) link.Link {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0 /* TC_ACT_OK */), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }() // the link holds it
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

package bpf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf/link"
)

// What was taken off a proxy's interface and namespace is seen, and put back.
func TestCheckProxy(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcx", true: "clsact"}[clsact], func(t *testing.T) {
			pins := mountPins(t)
			ns, proxy := newNamespace(t), newNamespace(t)
			weir := ns.veth(t, "weir0", proxy, "eth0")
			d := load(t, pins, func(o *Options) { o.ForceClsact = clsact })
			do := func(f func() error) {
				t.Helper()
				var err error
				ns.do(func() { err = f() })
				check(t, err)
			}
			want := func(fromProxy, steer, listeners bool) {
				t.Helper()
				var p ProxyPrograms
				do(func() (err error) { p, err = d.CheckProxy(3, weir); return err })
				if p != (ProxyPrograms{FromProxy: fromProxy, Steer: steer, Listeners: listeners}) {
					t.Errorf("found %+v", p)
				}
			}
			attach := func() { t.Helper(); do(func() error { return d.AttachProxy(3, weir, proxy.file) }) }
			want(false, false, false)
			attach()
			want(true, true, true)
			takeOff := func() {
				t.Helper()
				if clsact {
					ns.sh(t, "tc qdisc del dev weir0 clsact")
					return
				}
				do(func() error {
					l, err := link.LoadPinnedLink(filepath.Join(proxyDir(pins, 3), progFromProxy), nil)
					check(t, err)
					defer letGo(l)
					return l.Detach()
				})
			}
			takeOff()
			want(false, true, true)
			do(func() error { return d.RepairProxy(3, weir) })
			want(true, true, true)

			steer := filepath.Join(proxyDir(pins, 3), steerPin)
			l, err := link.LoadPinnedLink(steer, nil)
			check(t, err)
			check(t, l.Detach())
			letGo(l)
			want(true, false, true)
			attach()
			want(true, true, true)
			check(t, os.Remove(steer))
			takeOff()
			want(false, false, true)
			attach()
			want(true, true, true)
			check(t, os.Remove(filepath.Join(proxyDir(pins, 3), listenersPin)))
			want(true, true, false)
		})
	}
}

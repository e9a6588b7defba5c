package bpf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// The proxy goes on to be found when another version's state is there, whatever
// that looks like.
func TestInheritState(t *testing.T) {
	u32, u64 := &btf.Int{Name: "unsigned int", Size: 4}, &btf.Int{Name: "unsigned long long", Size: 8}
	field := func(name string, typ btf.Type, at uint32) btf.Member {
		return btf.Member{Name: name, Type: typ, Offset: btf.Bits(8 * at)}
	}
	for name, c := range map[string]struct {
		members           []btf.Member
		generation, until uint64
	}{
		"moved": {[]btf.Member{
			field("more", u64, 0), field("midstream_until", u64, 8), field("generation", u32, 16), field("revision", u32, 20),
		}, 7, 1 << 40},
		"of other sizes": {[]btf.Member{field("generation", u64, 8), field("midstream_until", u32, 16)}, 7, 5},
		"by typedef":     {[]btf.Member{field("generation", &btf.Typedef{Name: "__u32", Type: u32}, 12)}, 7, 0},
		"unknown":        {[]btf.Member{field("proxy", u32, 0)}, 0, 0},
		"no description": {nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			pins := mountPins(t)
			check(t, os.MkdirAll(filepath.Join(pins, mapsDir), 0o700))
			value := make([]byte, 24)
			spec := &ebpf.MapSpec{Name: "state", Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1}
			if c.members != nil {
				spec.Key, spec.Value = u32, &btf.Struct{Name: "state", Size: 24, Members: c.members}
			}
			for _, m := range c.members {
				n := map[string]uint64{"generation": c.generation, "midstream_until": c.until}[m.Name]
				for i := range 4 { // all values fit, or are above
					value[int(m.Offset.Bytes())+i] = byte(n >> (8 * i))
				}
				if n >= 1<<32 {
					value[m.Offset.Bytes()+5] = byte(n >> 40)
				}
			}
			m, err := ebpf.NewMap(spec)
			check(t, err)
			defer letGo(m)
			check(t, m.Put(uint32(0), value))
			check(t, m.Pin(filepath.Join(pins, mapsDir, "state@other")))

			// conntrack is there already, or the time would begin anew.
			d := load(t, pins, nil)
			check(t, d.Close())
			check(t, os.Remove(d.paths["state"]))
			d = load(t, pins, nil)
			if d.Generation() != uint8(c.generation) || d.state.MidstreamUntil != c.until {
				t.Errorf("generation %d, lenient until %d, want %d, %d", d.Generation(), d.state.MidstreamUntil, c.generation, c.until)
			}
		})
	}
}

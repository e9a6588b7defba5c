package identity

import "testing"

// What a successor releases of its seed does not come to mean something else
// at once: it may stand in the kernel's tables still.
func TestAllocatorGoesOnBeyondItsSeed(t *testing.T) {
	a := NewAllocator(256, map[uint32]Digest{300: {1}, 257: {2}, 5: {3}})
	a.Release(257)
	a.Release(300)
	for want := uint32(301); want < 304; want++ {
		if got, err := a.Get(Digest{9, byte(want)}); err != nil || got != want {
			t.Errorf("got %d, %v, want %d", got, err, want)
		}
	}
	// Behind the last number they begin anew.
	a = NewAllocator(256, map[uint32]Digest{^uint32(0): {1}, 256: {2}})
	if got, err := a.Get(Digest{3}); err != nil || got != 257 {
		t.Errorf("got %d, %v", got, err)
	}
}

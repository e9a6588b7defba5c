package fqdn

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// An index finds what is in it and nothing else, whatever came and went.
func TestIndex(t *testing.T) {
	for _, mask := range []uint64{^uint64(0), 0xffff_0000_0000_0f0f, 0x3} { // also with hashes that collide
		rnd := rand.New(rand.NewPCG(1, mask))
		var x index
		hash := map[uint32]uint64{}
		hashOf := func(p uint32) uint64 { return hash[p] }
		in := map[uint32]bool{}
		for range 20_000 {
			p := uint32(rnd.IntN(500))
			if _, ok := hash[p]; !ok {
				hash[p] = rnd.Uint64() & mask
			}
			is := func(q uint32) bool { return p == q }
			if got, ok := x.find(hash[p], is); ok != in[p] || ok && got != p {
				t.Fatalf("%d: found %v at %d, is there %v", p, ok, got, in[p])
			}
			if in[p] {
				x.remove(hash[p], p)
			} else {
				x.add(hash[p], p, hashOf)
			}
			in[p] = !in[p]
		}
		for _, part := range x.parts {
			if len(part.slots) > 4*500 {
				t.Errorf("a part has %d slots", len(part.slots))
			}
		}
	}
}

func TestIndexOfHighPlaces(t *testing.T) {
	var x index
	hash := func(p uint32) uint64 { return ^uint64(0) }
	for p := uint32(maxPlaces - 20); p < maxPlaces; p++ {
		x.add(hash(p), p, hash)
	}
	for p := uint32(maxPlaces - 20); p < maxPlaces; p++ {
		if got, ok := x.find(hash(p), func(q uint32) bool { return p == q }); !ok || got != p {
			t.Errorf("%d is found %v at %d", p, ok, got)
		}
	}
	if _, ok := x.find(hash(0), func(q uint32) bool { return q == maxPlaces }); ok {
		t.Error("a place that can't be is found")
	}
}

// Texts are kept as they are, and their room is used again.
func TestTexts(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var x texts
	type kept struct {
		at   uint32
		text string
	}
	var list []kept
	for i := range 50_000 {
		if len(list) > 500 {
			k := rnd.IntN(len(list))
			x.remove(list[k].at, uint16(len(list[k].text)))
			list[k] = list[len(list)-1]
			list = list[:len(list)-1]
		}
		s := fmt.Sprint(i) + strings.Repeat("x", rnd.IntN(100))
		switch i % 1000 {
		case 0:
			s = strings.Repeat("y", maxName)
		case 1:
			s = ""
		}
		list = append(list, kept{x.add(s), s})
		if k := list[rnd.IntN(len(list))]; string(x.get(k.at, uint16(len(k.text)))) != k.text {
			t.Fatalf("%q has become %q", k.text, x.get(k.at, uint16(len(k.text))))
		}
	}
	if n := len(x.chunks); n > 8 {
		t.Errorf("%d chunks for 500 texts", n)
	}
	for _, k := range list {
		x.remove(k.at, uint16(len(k.text)))
	}
	if x.bytes != 0 {
		t.Errorf("%d bytes are left", x.bytes)
	}
}

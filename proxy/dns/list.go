package dns

// ring is a list of what has a node in it, oldest first; the zero value must be
// made ready by init. An element is in one ring by each of its nodes at most.
type ring[T any] struct{ root node[T] }

// node is an element's place in a ring; of is the element.
type node[T any] struct {
	older, newer *node[T]
	of           *T
}

func (r *ring[T]) init() { r.root.older, r.root.newer = &r.root, &r.root }

// oldest is nil of an empty ring.
func (r *ring[T]) oldest() *T { return r.root.newer.of }

// push makes an element that is in no ring the newest.
func (r *ring[T]) push(n *node[T], of *T) {
	n.of = of
	n.older, n.newer = r.root.older, &r.root
	n.older.newer, n.newer.older = n, n
}

// remove takes the node out of its ring; of one that is in none it does nothing.
func (n *node[T]) remove() {
	if n.older == nil {
		return
	}
	n.older.newer, n.newer.older = n.newer, n.older
	n.older, n.newer = nil, nil
}

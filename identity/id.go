package identity

// ID numbers an identity on this node. Numbers below 256 are reserved and
// fixed (they agree with Cilium's, so that a reader of both is at home);
// everything else is allocated here and means nothing on another node.
type ID uint32

// Reserved identities. Any is not an identity: in a policy key it stands for
// every peer.
const (
	Any           ID = 0
	Host          ID = 1  // a socket of this node
	World         ID = 2  // outside addresses; used where the family is not known
	Unmanaged     ID = 3  // kept for the entity of that name; nothing has it
	Health        ID = 4  // likewise
	Init          ID = 5  // likewise
	RemoteNode    ID = 6  // another node
	KubeAPIServer ID = 7  // the API server, where it is not a node
	Ingress       ID = 8  // kept for the entity of that name
	WorldIPv4     ID = 9  // outside IPv4 addresses
	WorldIPv6     ID = 10 // outside IPv6 addresses
	// UnknownPod is an address in a node's pod range that no known pod has: no
	// CIDR, world or FQDN rule may match it.
	UnknownPod ID = 11

	// FirstLocal is the first number the allocator hands out.
	FirstLocal ID = 256
)

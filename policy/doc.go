// Package policy turns policies and the objects they speak of into what the
// kernel's tables of one node say, and explains it.
//
//	objects ── take ──► rules (translate) ──► enforcement of each subject ─┐
//	   │                                                                   │ template per peer
//	   └─ addresses ──► prefixes ──► peers ◄── selectors ──────────────────┤
//	                       │                                               ▼
//	                    Delta.Prefixes, Endpoints            Delta.Policies, RuleSets
//	                                                                       ▲
//	                                            Question ── Explain ── Lookup
//
// A subject is a set of local pods that can't be told apart; a peer is an
// identity, which is to say a set of addresses that rules can't tell apart. Of
// each pair of them, compile.go combines all rules to the entries of the
// policy map, so that Lookup, and the kernel's copy of it, gives the verdict
// of the rules. That is the only place where allow, deny and L7 rules meet.
//
// An ipBlock of a NetworkPolicy selects whoever has an address in it, as Kubernetes'
// own tests want it (blocks.go): pods and nodes, too, whose identity is then that of
// their labels and the blocks that the address lies in, so of one pod's two
// addresses it may be two, and of this node's, too: Peer.Host tells which are its own,
// not their identity. CIDR rules of Cilium's policies are about outside addresses
// only, as Cilium takes an ipBlock, too.
//
// An outside address is two peers: what its prefix says (the ipcache), and what
// the names say that DNS gave it (the fqdn table). A NameSet is the peer of all
// addresses of whose names exactly those toFQDNs selectors are. Lookup asks for
// the one and then the other; where rules about both meet on a port with L7
// rules, they have a peer for both together (Delta.Pairs), which is asked first.
//
// What a server says that only policies of one namespace name counts there alone:
// selectors about that bear the namespace, and only rules of its policies have
// them. They are there in namespaces with such policies, beside those about what
// counts for all.
//
// Where a policy is about names, DNS that it lets through on port 53 without
// DNS rules goes to the proxy all the same, where every question passes and the
// answers are seen: Cilium wants a DNS rule for that. What is not let through
// stays so. A backend of a service's port 53 that listens at another port is seen
// there (dns_behind.go). DNS rules are lifted by a rule without them only if that is for the
// same item of a port list, as in Cilium: by "53" the rules of "53", but not by
// a range, by all ports, or by a peer alone.
//
// A pod of this node that has no address yet has a policy already. Interfaces that
// may be its own are told as Strangers; where they may be one of several pods',
// union.go makes of the pods' policies one that is as strict as all of them.
//
// A service's addresses beside its cluster IPs, and the host ports of pods, lead past
// what the address itself is: frontends tell sockets where (frontends.go,
// host_ports.go), fronts what a packet is judged as that goes there (fronts.go).
//
// The node itself is a subject as well where policies select it (node.go). What
// passes at it all the same, fail-safe traffic and node ports, is a second policy
// (always.go), asked where the first denies.
//
// References looks for what policies name and is not there; it changes no verdict.
//
// Engine keeps everything, apart from strangers, as a function of the objects it was given: the same
// objects in any order and any number of batches make the same tables, apart
// from the numbers. Changes cost what they touch.
//
// Nothing is wider than it was written: a policy that was refused closes what
// it selects, rules of a kind that is not enforced yet refuse what they are
// about, and names that stand for nothing select nobody.
package policy

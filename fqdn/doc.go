// Package fqdn is the DNS names that were seen, the addresses they stand for,
// and for how long. It is part of the proxy's process.
//
//	believed answer --Learn--> names == pairs == addresses --> kernel's table fqdn
//	                             |        ^         |            address -> identity
//	agent --SetNames--> selectors that match        |
//	                             |        |         +-- Flows: which are in use
//	                             +-> sets of selectors -> identities
//	agent <--Watch-- sets without one
//
// A name matches some toFQDNs selectors. An address stands for all names that
// answers gave it, and so for a set of selectors; the agent has made an identity
// for many such sets, with its entries in the policies. Learn returns when the
// row of each address is there: the pod that gets the answer finds it.
//
// # Never wider
//
// An address whose set has no identity yet gets the one of the largest known
// part of it: entries hold for an identity if it shares a selector with theirs,
// so fewer selectors are fewer allows. The agent is told of the set, Learn waits
// for it for a moment, and the row is put right when it comes, however late. Of
// several such parts the one that the address has now stays: flows depend on it.
//
// # For whom
//
// An answer counts for the toFQDNs selectors of all policies, or, where only
// policies of one namespace name the server, for those of that namespace: then
// they are other selectors (dnsrules.Selector.Namespace), and the name is another
// one (scopes.go). An address that has both kinds of names has a set of both kinds
// of selectors, and each policy finds its own among them.
//
// The agent makes an identity for so many combinations and no more; the pods whose
// names call for them share those (wants.go). Who has used up his share takes no
// row from others: an address then stays what it is.
//
// # What can't be claimed
//
// What an answer says of pods, nodes and services is written like the rest, and
// means nothing: the kernel asks this table only about addresses that ipcache
// knows as outside. Addresses that no outside peer can have are left out: also
// link-local ones and the other metadata services of clouds, which need a rule by
// CIDR, and what Settings.Deny names.
//
// # How long
//
// A pair of name and address lives until the latest answer's TTL is over, within
// the bounds of Settings, and then as long as conntrack has a flow to the
// address. conntrack is read only when something has expired, or there is too
// much, and never for more than a small part of the time. What is evicted is
// chosen right after it was read. If it can't be read for a minute, time alone
// decides.
//
// Where there is too much, the pods with the most give way, also what is in use:
// a few flows to addresses that have thousands of names would keep everything
// else out. What goes of a pod is what it has not used of late, then names that
// an address has besides others for the same selectors, then the rest. Learn
// waits for that rather than let an answer go that is not in the table.
//
// # Processes that end
//
// What is known is written to two files in turn, a second after something new,
// and restored by the next process (restore.go). Rows that a checkpoint does not
// explain are those of the last second before a crash; they stay for a minute, or
// as long as they are in use, since pods just got those answers. Until the first
// SetNames no row is changed. A process that is replaced while it still has
// connections exports what it knows, and retires.
//
// # Memory
//
// 100,000 names with 300,000 addresses take 40 MB, 130 bytes an address: all is
// in slabs without pointers (slab.go), found by hash tables of places. Names,
// addresses and sets are each made once. Whatever goes through all of it holds
// the lock for a fraction of a millisecond at a time.
package fqdn

// Package identity says who a packet belongs to: labels with their sources,
// selectors over them, and the numbers that stand for label sets.
//
//	pod, node, prefix ── labels ── Digest ── Allocator ── ID
//	                       ▲
//	                    Selector (of a policy)
//
// Equal label sets have one identity, so what the kernel holds grows with the
// kinds of pods, not with their number. PodLabels says which labels a pod's
// identity has.
package identity

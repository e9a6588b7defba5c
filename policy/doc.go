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
// Engine keeps everything as a function of the objects it was given: the same
// objects in any order and any number of batches make the same tables, apart
// from the numbers. Changes cost what they touch.
//
// Nothing is wider than it was written: a policy that was refused closes what
// it selects, rules of a kind that is not enforced yet refuse what they are
// about, and names that stand for nothing select nobody.
package policy

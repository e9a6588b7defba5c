// Package api holds the policy objects people write: their types, how they
// are read from YAML or JSON, and what is refused, with file, line and field.
//
//	file -> Documents -> Document -> Policy, CIDRGroup   (this package's kinds)
//	                              -> JSON                (all others)
//
// A Policy is either accepted, and then means what its text says, or refused,
// and then says what has to be closed for it. Refused is what Cilium's CRD
// schema or agent refuses, or the API server for a NetworkPolicy; what an API
// server would prune without a word; and what Weir can't enforce. All that is
// wrong with an object is found at once.
//
// +groupName=cilium.io
// +versionName=v2
package api

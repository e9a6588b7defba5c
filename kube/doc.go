// Package kube is where objects come from: a directory of the YAML people
// have, or an API server. It turns Pods, Namespaces, Nodes,
// Services, EndpointSlices and policies into the few fields the policy engine
// needs, and hands on what changed.
//
//	files --> documents --> objects --difference--> []policy.Change --> endpoint
//	              |             |
//	              +--problems---+--> status
//
//	API server --watch per kind--> items --> inboxes --> outbox --> endpoint
//
// Of an API server (Cluster), every object becomes its few fields while the
// stream that it comes in is decoded, one at a time, and only these are kept;
// a policy is kept as JSON until the strict decoder has seen it, so that fields
// which the server let pass without knowing them are refused here. An inbox
// holds the objects of a kind and compares: what a pod's status or a relist
// brings that is nothing new is no change. The outbox gathers changes for a
// millisecond. Nothing is handed on before all kinds were read (ledger.go has the
// one exception), and everything stays while the server is away, so an agent that
// starts without it leaves in force what it finds. An inbox does not know that its feed is a watch: what
// gathers pods for many nodes could be one.
//
// What became of policies goes the other way: Conditions notes what the engine
// took, and the agent that holds a Lease writes it to the objects' status, less
// what stands there already, and tells it as events. The others hear by a watch
// that the Lease is renewed, every five seconds, and ask for it only when it is
// not. Doubts finds the policies that name what is not there. Definitions knows
// whose the custom resources of a cluster are.
//
// What is broken never opens anything: a file that can't be read as YAML
// keeps its last valid contents in force, an object that is no valid Pod (and
// so on) its last valid state, and a policy that is refused closes what it
// selects. All of it is reported.
package kube

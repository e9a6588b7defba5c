// Package kube is where objects come from: a directory of the YAML people
// have (later also the API server). It turns Pods, Namespaces, Nodes,
// Services, EndpointSlices and policies into the few fields the policy engine
// needs, and hands on what changed.
//
//	files --> documents --> objects --difference--> []policy.Change --> endpoint
//	              |             |
//	              +--problems---+--> status
//
// What is broken never opens anything: a file that can't be read as YAML
// keeps its last valid contents in force, an object that is no valid Pod (and
// so on) its last valid state, and a policy that is refused closes what it
// selects. All of it is reported.
package kube

// Command apiserver measures what an agent costs in a large cluster, and how
// fast it is there: against a real API server with objects, but no kubelet, of
// many nodes. The agent is the real one, in a state of its own; its pods have
// no interfaces, so that what is measured is from the API server to the
// kernel's tables.
//
// It needs root, and what test/apiserver needs: `make bench-kube`.
package main

// Package e2e deploys Weir to a real cluster (package test/cluster) as a user
// would, from the image and deploy/weir.yaml, and plays stories on it: tenants
// apart in both formats of policy, HTTP, names, both ends of a connection between
// two nodes in two families, what people are told of their policies and by which
// agent, an agent that is killed, a rolling update under load with streams that
// end in time and that don't, an update to another layout of all tables and back,
// what rights are really needed, and that uninstalling leaves nothing. Some of
// them are played on nodes without user namespaces, too.
//
// Connections are made from inside pods' network namespaces, so that no
// client's image and no `kubectl exec` is in between.
//
// It runs with WEIR_TEST_E2E=1 only (`make e2e`), as root. WEIR_E2E_IMAGE,
// WEIR_E2E_NEXT and WEIR_E2E_OTHER are archives with the images weirnet/weir:dev,
// weirnet/weir:next and weirnet/weir:other, of three builds, the last one with
// another layout of the kernel's tables; WEIR_E2E_CNI is ptp or bridge,
// WEIR_E2E_NODES how many nodes there are (1), and WEIR_E2E_DUAL_STACK=1 gives
// them IPv6 as well; with WEIR_E2E_KEEP=1 the cluster is left up, and one that is
// up is used. On one node nobody can take over from an agent, and that is left
// out.
package e2e

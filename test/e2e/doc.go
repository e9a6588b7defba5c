// Package e2e deploys Weir to a real cluster (package test/cluster) as a user
// would, from the image and deploy/weir.yaml, and plays stories on it: tenants
// apart in both formats of policy, HTTP, names, an agent that is killed, a
// rolling update under load, what rights are really needed, and that uninstalling
// leaves nothing. Some of them are played on nodes without user namespaces, too.
//
// Connections are made from inside pods' network namespaces, so that no
// client's image and no `kubectl exec` is in between.
//
// It runs with WEIR_TEST_E2E=1 only (`make e2e`), as root. WEIR_E2E_IMAGE and
// WEIR_E2E_NEXT are archives with the images weirnet/weir:dev and
// weirnet/weir:next, of two builds; WEIR_E2E_CNI is ptp or bridge; with
// WEIR_E2E_KEEP=1 the cluster is left up, and one that is up is used.
package e2e

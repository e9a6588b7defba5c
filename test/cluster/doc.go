// Package cluster brings up a real Kubernetes cluster on one machine, from
// nothing but the Go module proxy and Debian's packages (containerd, runc, CNI
// plugins): etcd, API server, controller manager, scheduler, and nodes that
// have containerd, kubelet and kube-proxy each, and CoreDNS as the cluster's
// DNS service.
//
//	 NAME.lan: bridge br0, 192.0.2.1, and the world: 198.51.100.2, 198.18.0.0/15
//	     |                 |                    |
//	+- NAME.control -+ +- NAME.node1 ------+ +- NAME.node2 ------+
//	| 192.0.2.10     | | 192.0.2.11        | | 192.0.2.12        |
//	| etcd           | | containerd        | | ...               |
//	| kube-apiserver | | kubelet           | |                   |
//	| ...            | | kube-proxy        | |                   |
//	+----------------+ | pods 10.77.1.0/24 | | pods 10.77.2.0/24 |
//	        ^          +-------------------+ +-------------------+
//	127.0.0.1:PORT of the host, passed on by a process
//
// With DualStack there are 2001:db8::N beside 192.0.2.N (the world:
// 2001:db8:1::2 and 2001:db8:2::/48), fd77:0:0:N::/64 beside 10.77.N.0/24 and
// services in fd96::/112 beside 10.96.0.0/16. Pods reach pods and services
// with their own addresses, and all else with their node's.
//
// Each box is a network namespace (listed by `ip netns`) and, but for the
// first, a machine (see package machine): programs in it believe to be alone,
// with their own files, mounts, processes and cgroups. Nothing of the host is
// changed but for the namespaces' names, a cgroup NAME and the directory
// /run/NAME, and Down removes these. Several clusters of different names can
// run at the same time.
//
// Images come from archives (Load); there is no registry, and so
// imagePullPolicy must be Never or IfNotPresent.
//
// The test of this package runs with WEIR_TEST_CLUSTER=1 only.
package cluster

package identity

import "strings"

// Keys of labels that are made from what a pod is, not from its own labels.
const (
	KeyNamespace       = "io.kubernetes.pod.namespace"
	KeyNamespaceLabels = "io.cilium.k8s.namespace.labels" // with a dot and the label's key
	KeyServiceAccount  = "io.cilium.k8s.policy.serviceaccount"
	KeyCluster         = "io.cilium.k8s.policy.cluster"

	// KeyMetadataName is a label that every namespace has: its name.
	KeyMetadataName = "kubernetes.io/metadata.name"
	// ClusterName is the value of KeyCluster: Weir knows one cluster.
	ClusterName = "default"
	// DefaultServiceAccount is the account of a pod that names none.
	DefaultServiceAccount = "default"
)

// Names of reserved labels.
const (
	ReservedHost          = "host"
	ReservedWorld         = "world"
	ReservedWorldIPv4     = "world-ipv4"
	ReservedWorldIPv6     = "world-ipv6"
	ReservedUnmanaged     = "unmanaged"
	ReservedHealth        = "health"
	ReservedInit          = "init"
	ReservedRemoteNode    = "remote-node"
	ReservedKubeAPIServer = "kube-apiserver"
	ReservedIngress       = "ingress"
)

// Reserved returns a set of reserved labels.
func Reserved(names ...string) Labels {
	labels := make([]Label, len(names))
	for i, n := range names {
		labels[i] = Label{Source: SourceReserved, Key: n}
	}
	return NewLabels(labels...)
}

// PodLabels returns the labels of a pod's identity: those of its own that
// count (see CountsForIdentity), its namespace and that one's labels, its
// service account and the cluster. A pod's own labels can't pose as the latter.
func PodLabels(namespace string, namespaceLabels map[string]string, serviceAccount string, own map[string]string) Labels {
	if serviceAccount == "" {
		serviceAccount = DefaultServiceAccount
	}
	labels := make([]Label, 0, len(own)+len(namespaceLabels)+4)
	add := func(key, value string) {
		labels = append(labels, Label{Source: SourceK8s, Key: key, Value: value})
	}
	add(KeyNamespace, namespace)
	add(KeyServiceAccount, serviceAccount)
	add(KeyCluster, ClusterName)
	add(KeyNamespaceLabels+"."+KeyMetadataName, namespace)
	for k, v := range namespaceLabels {
		if k != KeyMetadataName {
			add(KeyNamespaceLabels+"."+k, v)
		}
	}
	for k, v := range own {
		if !strings.HasPrefix(k, "io.cilium.k8s.") && CountsForIdentity(k) {
			add(k, v)
		}
	}
	return NewLabels(labels...)
}

// CountsForIdentity tells whether a pod's own label of that key is part of its
// identity. Labels that differ from pod to pod of one workload, or that
// describe where a pod runs, are not, as in Cilium: a selector on such a key
// selects nobody. A key in question counts if the longest pattern that takes
// it in is longer than the shortest that leaves it out.
func CountsForIdentity(key string) bool {
	included := 0
	for _, p := range [...]string{KeyNamespace, KeyNamespaceLabels, "app.kubernetes.io", KeyCluster, KeyServiceAccount} {
		if strings.HasPrefix(key, p) {
			included = max(included, len(p))
		}
	}
	excluded := 0
	exclude := func(length int) {
		if excluded == 0 || length < excluded {
			excluded = length
		}
	}
	for _, p := range [...]string{
		"io.kubernetes", "kubernetes.io", "k8s.io", "topology.kubernetes.io",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
		"batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/controller-uid",
		"pod-template-generation", "pod-template-hash", "controller-revision-hash", "controller-uid",
		"etcd_node",
	} {
		if strings.HasPrefix(key, p) {
			exclude(len(p))
		}
	}
	if strings.HasPrefix(key, "annotation") {
		exclude(len(key))
	}
	const beta = "beta.kubernetes.io"
	if i := strings.LastIndex(key, beta); i >= 0 {
		exclude(i + len(beta))
	}
	return excluded == 0 || included > excluded
}

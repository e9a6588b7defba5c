package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/weirnet/weir/test/cluster/machine"
)

// Where containerd and CNI look, inside a node.
const (
	containerdSocket = "/run/containerd/containerd.sock"
	debianPlugins    = "/usr/lib/cni"
)

// control describes the machine of the control plane.
func (c *Cluster) control(cache string) machine.Spec {
	pki := func(name string) string { return c.path("pki", name) }
	addrs := c.lanAddrs(controlNumber)
	ready := fmt.Sprintf("https://127.0.0.1:%d/readyz", apiPort)
	return machine.Spec{
		Hostname: c.Name + "-control",
		Dir:      c.path("control"),
		Cgroup:   c.Name + "/control",
		Binds:    []string{cache, c.path()},
		Forward:  fmt.Sprintf("127.0.0.1:%d", apiPort),
		Processes: []machine.Process{
			{Name: "etcd", Args: []string{
				filepath.Join(cache, "etcd"), "--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=warn",
				"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
				"--quota-backend-bytes=8589934592",
			}},
			{Name: "kube-apiserver", Args: []string{
				filepath.Join(cache, "kube-apiserver"),
				"--etcd-servers=http://127.0.0.1:2379",
				fmt.Sprintf("--secure-port=%d", apiPort),
				"--advertise-address=" + addrs[0].String(),
				"--service-cluster-ip-range=" + joined(c.serviceCIDRs()),
				"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
				"--client-ca-file=" + pki("ca.crt"),
				"--tls-cert-file=" + pki("kube-apiserver.crt"), "--tls-private-key-file=" + pki("kube-apiserver.key"),
				"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
				"--kubelet-client-certificate=" + pki("kubelet-client.crt"), "--kubelet-client-key=" + pki("kubelet-client.key"),
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file=" + pki("service-accounts.crt"), "--service-account-signing-key-file=" + pki("service-accounts.key"),
				"--allow-privileged",
				"--audit-policy-file=/etc/kubernetes/audit.yaml", "--audit-log-path=" + c.AuditLog(),
			}},
			{Name: "kube-controller-manager", After: ready, Args: []string{
				filepath.Join(cache, "kube-controller-manager"),
				"--kubeconfig=" + pki("kube-controller-manager.kubeconfig"), "--leader-elect=false",
				// Its default of 20 requests a second delays the first pod by five.
				"--kube-api-qps=200", "--kube-api-burst=400",
				"--use-service-account-credentials", "--service-account-private-key-file=" + pki("service-accounts.key"),
				"--root-ca-file=" + pki("ca.crt"),
				"--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
				"--controllers=" + c.Controllers,
			}},
			{Name: "kube-scheduler", After: ready, Args: []string{
				filepath.Join(cache, "kube-scheduler"),
				"--kubeconfig=" + pki("kube-scheduler.kubeconfig"), "--leader-elect=false", "--kube-api-qps=200", "--kube-api-burst=400",
			}},
		},
		Files: map[string]string{
			"/etc/resolv.conf": "nameserver " + c.lanAddrs(routerNumber)[0].String() + "\n",
			// What service accounts of the cluster's users may and do call, and
			// nothing else: it is what tests of their rights look at.
			"/etc/kubernetes/audit.yaml": encode(object{
				"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": []string{"RequestReceived"},
				"rules": []object{
					{"level": "None", "userGroups": []string{"system:serviceaccounts:kube-system"}},
					{"level": "Metadata", "userGroups": []string{"system:serviceaccounts"}},
					{"level": "None"},
				},
			}),
		},
	}
}

// worker describes the machine of a node.
func (c *Cluster) worker(cache string, index int) (machine.Spec, error) {
	name := c.Nodes[index].Name
	addrs := c.lanAddrs(nodeNumber(index))
	ready := fmt.Sprintf("https://%s:%d/readyz", c.lanAddrs(controlNumber)[0], apiPort)
	plugins, err := os.ReadDir(debianPlugins)
	if err != nil {
		return machine.Spec{}, fmt.Errorf("find the CNI plugins: %w", err)
	}
	links := map[string]string{}
	for _, p := range plugins {
		links["/opt/cni/bin/"+p.Name()] = filepath.Join(debianPlugins, p.Name())
	}
	return machine.Spec{
		Hostname: name,
		Dir:      c.path(name),
		Cgroup:   c.Name + "/" + name,
		Binds:    []string{cache, c.path()},

		NoUserNamespaces: c.NoUserNamespaces,
		Links:            links,
		Sysctls: map[string]string{ // kubelet sets these, for the whole kernel
			"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
			"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
		},
		Files: map[string]string{
			"/etc/resolv.conf":                         "nameserver " + c.lanAddrs(routerNumber)[0].String() + "\n",
			"/etc/machine-id":                          fmt.Sprintf("%032x\n", nodeNumber(index)),
			"/etc/containerd/config.toml":              containerdConfig,
			"/etc/cni/net.d/10-" + c.CNI + ".conflist": c.cniConfig(index),
			"/etc/kubernetes/kubelet.json":             c.kubeletConfig(name),
			"/etc/kubernetes/kube-proxy.json":          c.kubeProxyConfig(name),
		},
		Processes: []machine.Process{
			{Name: "containerd", Args: []string{"containerd"}},
			{Name: "kubelet", After: ready, Args: []string{
				filepath.Join(cache, "kubelet"),
				"--config=/etc/kubernetes/kubelet.json", "--kubeconfig=" + c.path("pki", name+".kubeconfig"),
				"--hostname-override=" + name, "--node-ip=" + joined(addrs),
			}},
			{Name: "kube-proxy", After: ready, Args: []string{
				filepath.Join(cache, "kube-proxy"), "--config=/etc/kubernetes/kube-proxy.json",
			}},
		},
	}, nil
}

// restrict_oom_score_adj: where there is no CAP_SYS_RESOURCE, runc dies of
// lowering a score.
const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`

type object map[string]any

// encode writes what YAML readers take as well. Objects of this package hold
// nothing that can't be encoded.
func encode(o object) string {
	text, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		panic(err)
	}
	return string(text) + "\n"
}

func (c *Cluster) cniConfig(index int) string {
	var ranges [][]object
	for _, p := range c.podCIDRs(index + 1) {
		ranges = append(ranges, []object{{"subnet": p.String()}})
	}
	var routes []object
	for _, to := range families(c.Config, "0.0.0.0/0", "::/0") {
		routes = append(routes, object{"dst": to})
	}
	first := object{"type": c.CNI, "ipMasq": false, "ipam": object{
		"type": "host-local", "dataDir": "/run/cni/networks", "ranges": ranges, "routes": routes,
	}}
	if c.CNI == "bridge" {
		first["bridge"], first["isGateway"], first["hairpinMode"] = "cni0", true, true
	}
	return encode(object{"cniVersion": "0.4.0", "name": "pods", "plugins": []object{
		first, {"type": "portmap", "capabilities": object{"portMappings": true}},
	}})
}

func (c *Cluster) kubeletConfig(name string) string {
	return encode(object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs", "failCgroupV1": false, "failSwapOn": false,
		"clusterDNS": []string{dnsService}, "clusterDomain": "cluster.local", "resolvConf": "/etc/resolv.conf",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": c.path("pki", "ca.crt")},
		},
		"authorization": object{"mode": "Webhook"},
		"tlsCertFile":   c.path("pki", name+".crt"), "tlsPrivateKeyFile": c.path("pki", name+".key"),
		"oomScoreAdj": 0, // lowering it is not to be had everywhere
		// The machine's disk is memory: how full it looks means nothing.
		"evictionHard":                object{"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
		"imageGCHighThresholdPercent": 100,
		"volumePluginDir":             "/var/lib/kubelet/volume-plugins",
		// As fast as kubelet can, and not at the default 5 a second.
		"kubeAPIQPS": 100, "kubeAPIBurst": 200,
	})
}

func (c *Cluster) kubeProxyConfig(name string) string {
	return encode(object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": c.path("pki", "kube-proxy.kubeconfig")},
		"mode":             c.ProxyMode, "clusterCIDR": joined(c.clusterCIDRs()), "hostnameOverride": name,
		"oomScoreAdj": 0,
		// These are the whole kernel's, not the node's.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
}

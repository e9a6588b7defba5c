package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/test/node"
)

// TestCluster brings clusters of both shapes up, lets pods talk in every way
// there is, and looks at what is left after.
func TestCluster(t *testing.T) {
	if os.Getenv("WEIR_TEST_CLUSTER") == "" {
		t.Skip("this builds Kubernetes, which takes ten minutes the first time: set WEIR_TEST_CLUSTER=1")
	}
	if os.Getuid() != 0 {
		t.Fatal("a cluster needs root")
	}
	cache, err := DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), cache, t.Output()); err != nil {
		t.Fatal(err)
	}
	for i, config := range []Config{
		{CNI: "ptp", ProxyMode: "iptables"},
		{CNI: "bridge", ProxyMode: "nftables", DualStack: true, NodeCount: 2},
	} {
		t.Run(fmt.Sprintf("%s-%s", config.CNI, config.ProxyMode), func(t *testing.T) {
			config.Name = node.UniqueName("weirtest", 900+i)
			before := hostState(t)
			t.Cleanup(func() {
				if err := Down(config.Name); err != nil {
					t.Error(err)
				}
				nothingLeft(t, config.Name)
				if after := hostState(t); after != before {
					t.Errorf("the host was changed:\nbefore %s\nafter  %s", before, after)
				}
			})
			c, err := Up(t.Context(), config, cache, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			talk(t, c)

			again, err := Up(t.Context(), config, cache, t.Output())
			if err != nil || again.Control != c.Control {
				t.Errorf("a second Up: %v, and another cluster", err)
			}
			config.DualStack = !config.DualStack
			if _, err := Up(t.Context(), config, cache, t.Output()); !errors.Is(err, ErrOther) {
				t.Errorf("Up with another configuration: %v", err)
			}
		})
	}
}

const pods = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: $IMAGE
        imagePullPolicy: Never
        args: [netexec, --http-port=80, --udp-port=-1]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ipFamilyPolicy: PreferDualStack
  ports: [{port: 8000, targetPort: 80, nodePort: 30080}]
`

// talk connects pods with pods, services, nodes and the world.
func talk(t *testing.T, c *Cluster) {
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := c.Kubectl(t.Context(), strings.ReplaceAll(pods, "$IMAGE", agnhostImage), args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	kubectl("apply", "-f", "-")
	kubectl("rollout", "status", "daemonset/web", "--timeout=60s")
	world := exec.CommandContext(t.Context(), "ip", "netns", "exec", c.netns("lan"), c.Program("agnhost"), "netexec", "--http-port=80", "--udp-port=-1")
	if err := world.Start(); err != nil {
		t.Fatal(err)
	}
	defer world.Wait()
	defer world.Process.Kill()

	to := []string{"web.default.svc.cluster.local:8000", "web:8000", "198.51.100.2:80", "198.18.7.7:80"}
	if c.DualStack {
		to = append(to, "[2001:db8:1::2]:80", "[2001:db8:2::7]:80")
	}
	for _, address := range strings.Fields(kubectl("get", "service", "web", "--output=jsonpath={.spec.clusterIPs[*]}")) {
		to = append(to, hostPort(address, "8000"))
	}
	for _, address := range strings.Fields(kubectl("get", "pods", "--selector=app=web", "--output=jsonpath={.items[*].status.podIPs[*].ip}")) {
		to = append(to, hostPort(address, "80"))
	}
	for _, n := range c.Nodes {
		for _, address := range n.Addrs {
			to = append(to, hostPort(address.String(), "30080"))
		}
	}
	want := 6 + c.NodeCount
	if c.DualStack {
		want += 3 + c.NodeCount + c.NodeCount
	}
	if len(to) < want {
		t.Errorf("there are but %d addresses, want %d: %v", len(to), want, to)
	}
	for _, pod := range strings.Fields(kubectl("get", "pods", "--selector=app=web", "--output=name")) {
		for _, address := range to {
			// What kube-proxy and CoreDNS are told takes a moment.
			err := retry(t.Context(), func(ctx context.Context) error {
				_, err := c.Kubectl(ctx, "", "exec", pod, "--", "/agnhost", "connect", address, "--timeout=2s")
				return err
			})
			if err != nil {
				t.Errorf("%s to %s: %v", pod, address, err)
			}
		}
	}
	// What runs inside is in the machine's cgroups: its cgroup programs see it.
	out, err := c.Nodes[0].Command("cat", "/proc/self/cgroup", "/proc/sys/kernel/hostname").CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(out)) {
		if at := strings.Index(line, ":/"); at >= 0 && strings.Contains(line[at:], "..") {
			t.Errorf("a program inside is in a cgroup outside: %s", line)
		}
	}
	if !strings.HasSuffix(string(out), "\nnode1\n") {
		t.Errorf("the node's host name: %s", out)
	}
}

func hostPort(address, port string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]:" + port
	}
	return address + ":" + port
}

func retry(ctx context.Context, f func(context.Context) error) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if err := f(ctx); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// hostState is what a cluster must not change.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max"} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s=%s ", name, strings.TrimSpace(string(value)))
	}
	for _, dir := range []string{"/etc/cni", "/opt/cni", "/var/lib/kubelet", "/var/log/pods", "/etc/kubernetes"} {
		_, err := os.Stat(dir)
		fmt.Fprintf(&b, "%s:%v ", dir, err == nil)
	}
	return b.String()
}

// nothingLeft looks for what a cluster is made of.
func nothingLeft(t *testing.T, name string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/" + name + ".*", dir(name), "/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), name) {
		t.Error("mounts are left behind")
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), name) {
			t.Errorf("still runs: %s", strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
}

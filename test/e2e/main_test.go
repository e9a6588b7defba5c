package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/test/cluster"
)

// Where things are in the repository.
const (
	manifest  = "../../deploy/weir.yaml"
	uninstall = "../../deploy/uninstall.yaml"
	crdsDir   = "../../deploy/crds"
)

// clusterName is the cluster's, where WEIR_E2E_CLUSTER names none.
const clusterName = "weir-e2e"

// deployed is Weir in a cluster.
type deployed struct {
	*cluster.Cluster
	t     *testing.T
	node  *space   // of the first node
	nodes []*space // of all
}

// story is something that happens to a cluster, on top of what those before it
// left.
type story struct {
	name string
	play func(*deployed)
}

func stories() []story {
	return []story{
		{"install", (*deployed).install},
		{"tenants by NetworkPolicy", func(d *deployed) { d.tenants(networkPolicies) }},
		{"tenants by CiliumNetworkPolicy", func(d *deployed) { d.tenants(ciliumPolicies) }},
		{"http", (*deployed).http},
		{"names", (*deployed).names},
		{"across nodes", (*deployed).across},
		{"services", (*deployed).services},
		{"conditions", (*deployed).conditions},
		{"shown inside the pod", (*deployed).shown},
		{"agent killed", (*deployed).agentKilled},
		{"proxy hangs", (*deployed).proxyHangs},
		{"rolling update under load", (*deployed).rollingUpdate},
		{"another layout and back", (*deployed).anotherLayout},
		{"rights", (*deployed).rights},
		{"capabilities", func(d *deployed) { d.capabilities(false) }},
		{"uninstall", (*deployed).uninstall},
	}
}

// TestDeployed installs Weir, plays the stories, and removes it.
func TestDeployed(t *testing.T) {
	config := cluster.Config{Name: clusterName, DualStack: os.Getenv("WEIR_E2E_DUAL_STACK") != ""}
	if n := os.Getenv("WEIR_E2E_NODES"); n != "" {
		var err error
		if config.NodeCount, err = strconv.Atoi(n); err != nil {
			t.Fatal("WEIR_E2E_NODES: ", err)
		}
	}
	bringUp(t, config).play(stories())
}

func (d *deployed) play(all []story) {
	for _, s := range all {
		if !d.t.Run(s.name, func(t *testing.T) {
			of := *d
			of.t = t
			s.play(&of)
		}) {
			d.diagnose(d.t)
			if s.name == "install" {
				d.t.FailNow()
			}
		}
	}
}

// TestShort looks whether the stories that `make e2e-short` picks by name exist.
func TestShort(t *testing.T) {
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\nE2E_SHORT := ")
	line, _, _ := strings.Cut(rest, "\n")
	if !found || line == "" {
		t.Fatal("the Makefile names none")
	}
	for name := range strings.FieldsSeq(line) {
		if !slices.ContainsFunc(stories(), func(s story) bool { return strings.ReplaceAll(s.name, " ", "_") == name }) {
			t.Errorf("there is no story %s", name)
		}
	}
}

// bringUp brings a cluster up, with pods and images, for as long as the test
// lasts. WEIR_E2E_CLUSTER and WEIR_E2E_CNI say what the configuration does not.
func bringUp(t *testing.T, config cluster.Config) *deployed {
	t.Helper()
	if os.Getenv("WEIR_TEST_E2E") == "" {
		t.Skip("this brings a cluster up, see make e2e: set WEIR_TEST_E2E=1")
	}
	if os.Getuid() != 0 {
		t.Fatal("a cluster needs root")
	}
	if name := os.Getenv("WEIR_E2E_CLUSTER"); name != "" {
		config.Name = strings.Replace(config.Name, clusterName, name, 1)
	}
	config.CNI, config.DNSUpstream = os.Getenv("WEIR_E2E_CNI"), worldServer
	name := config.Name
	cache, err := cluster.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.Build(t.Context(), cache, t.Output()); err != nil {
		t.Fatal(err)
	}
	keep := os.Getenv("WEIR_E2E_KEEP") != ""
	if _, err := cluster.Open(name); !keep && !errors.Is(err, cluster.ErrDown) {
		t.Fatalf("cluster %s is up, or the rest of it is there: bring it down first (bin/cluster --name %s down)", name, name)
	}
	c, err := cluster.Up(t.Context(), config, cache, t.Output())
	if !keep {
		t.Cleanup(func() {
			if err := cluster.Down(name); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, archive := range []string{"WEIR_E2E_IMAGE", "WEIR_E2E_NEXT", "WEIR_E2E_OTHER"} {
		if err := c.Load(t.Context(), os.Getenv(archive)); err != nil {
			t.Fatal(archive+": ", err)
		}
	}
	d := &deployed{Cluster: c, t: t}
	for _, n := range c.Nodes {
		s, err := openSpace("/run/netns/" + n.Netns)
		if err != nil {
			t.Fatal(err)
		}
		d.nodes = append(d.nodes, s)
	}
	d.node = d.nodes[0]
	lan, err := openSpace("/run/netns/" + name + ".lan")
	if err != nil {
		t.Fatal(err)
	}
	startWorld(t, lan)
	d.kubectl(pods(c.Nodes[0].Name, c.Nodes[len(c.Nodes)-1].Name), "apply", "-f", "-")
	return d
}

// pods are there before Weir is, and until the end: here, and some of the clients
// on a node there, which is the same where there is only one.
func pods(here, there string) string {
	return namespaceYAML("tenant-a", "tenant: a") + namespaceYAML("tenant-b", "tenant: b") + namespaceYAML("stranger", "") +
		namespaceYAML("ingress", "role: ingress") + namespaceYAML("monitoring", "role: monitoring") +
		namespaceYAML("http", "") + namespaceYAML("names", "") + namespaceYAML("across", "") + namespaceYAML("services", "") +
		podYAML(here, "tenant-a", "web") + podYAML(there, "tenant-a", "client") + podYAML(here, "tenant-b", "web") +
		podYAML(here, "ingress", "controller") + podYAML(there, "monitoring", "prometheus") + podYAML(there, "stranger", "client") +
		podYAML(here, "http", "web") + podYAML(here, "http", "echo") + podYAML(here, "http", "client") + podYAML(there, "http", "other") +
		podYAML(here, "names", "client") +
		podYAML(here, "across", "client") + podYAML(there, "across", "server") + podYAML(here, "across", "other")
}

// kubectl runs it, with text on its standard input.
func (d *deployed) kubectl(stdin string, args ...string) string {
	d.t.Helper()
	out, err := d.Kubectl(d.t.Context(), stdin, args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// apply applies policies, and deletes them when the story ends.
func (d *deployed) apply(objects string) {
	d.t.Helper()
	d.t.Cleanup(func() {
		_, err := d.Kubectl(context.Background(), objects, "delete", "--ignore-not-found", "-f", "-")
		if err != nil {
			d.t.Error(err)
		}
	})
	d.kubectl(objects, "apply", "-f", "-")
}

// weir runs weir in the agent's container, on the first node.
func (d *deployed) weir(args ...string) string {
	d.t.Helper()
	return d.weirOn(d.Nodes[0].Name, args...)
}

// weirOn runs weir in the agent's container on a node. During an update that is
// one of the two, but none that ends.
func (d *deployed) weirOn(node string, args ...string) string {
	d.t.Helper()
	pods := strings.Fields(d.kubectl("", "-n", "weir-system", "get", "pods", "-l", "app.kubernetes.io/name=weir",
		"--field-selector=status.phase=Running,spec.nodeName="+node,
		"--output=go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}"))
	if len(pods) == 0 {
		d.t.Fatalf("no pod of Weir runs on %s", node)
	}
	return d.kubectl("", append([]string{"-n", "weir-system", "exec", pods[0], "-c", "agent", "--", "/weir"}, args...)...)
}

// enforced returns once all objects that are there are enforced, on all nodes.
func (d *deployed) enforced() {
	d.t.Helper()
	for _, n := range d.Nodes {
		d.weirOn(n.Name, "status", "--wait", "--timeout=30s")
	}
}

// pod is a running one.
type pod struct {
	*space
	ip  string
	ips []string // by family
}

// web is where it answers.
func (p pod) web() string { return p.ip + ":80" }

// pod waits for a pod to be ready, and finds it.
func (d *deployed) pod(namespace, name string) pod {
	d.t.Helper()
	d.kubectl("", "-n", namespace, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=60s")
	said := strings.Fields(d.kubectl("", "-n", namespace, "get", "pod", name, "--output=jsonpath={.spec.nodeName} {.status.podIPs[*].ip}"))
	at := slices.IndexFunc(d.Nodes, func(n cluster.Node) bool { return n.Name == said[0] })
	if at < 0 || len(said) < 2 {
		d.t.Fatalf("pod %s/%s: %q", namespace, name, said)
	}
	s, err := podSpace(d.Nodes[at].Root(), netip.MustParseAddr(said[1]))
	if err != nil {
		d.t.Fatal(err)
	}
	return pod{s, said[1], said[1:]}
}

// podYAML is a web server.
func podYAML(node, namespace, name string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: %s}}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: %q, imagePullPolicy: Never, args: [netexec, --http-port=80, --udp-port=-1]}
`, name, namespace, name, node, cluster.AgnhostImage)
}

func namespaceYAML(name string, labels string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, labels)
}

// expect says that connections from one pod to another are allowed, or not.
func (d *deployed) expect(what string, from *space, to string, allowed bool) {
	d.t.Helper()
	if got := from.connects(to); got != allowed {
		d.t.Errorf("%s: connected %v, want %v", what, got, allowed)
	}
}

// diagnose prints what there is to say after a failure.
func (d *deployed) diagnose(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"-n", "weir-system", "describe", "pods"},
		{"-n", "weir-system", "logs", "-l", "app.kubernetes.io/name=weir", "--all-containers", "--prefix", "--tail=60"},
	} {
		out, err := d.Kubectl(ctx, "", args...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// inNode runs a program on the first node.
func (d *deployed) inNode(name string, args ...string) (string, error) {
	out, err := d.Nodes[0].Command(name, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), err
}

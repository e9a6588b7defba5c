package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
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
	t    *testing.T
	node *space // of the first node
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
		{"shown inside the pod", (*deployed).shown},
		{"agent killed", (*deployed).agentKilled},
		{"rolling update under load", (*deployed).rollingUpdate},
		{"rights", (*deployed).rights},
		{"capabilities", func(d *deployed) { d.capabilities(false) }},
		{"uninstall", (*deployed).uninstall},
	}
}

// TestDeployed installs Weir, plays the stories, and removes it.
func TestDeployed(t *testing.T) {
	bringUp(t, cluster.Config{Name: clusterName}).play(stories())
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
	for _, archive := range []string{"WEIR_E2E_IMAGE", "WEIR_E2E_NEXT"} {
		if err := c.Load(t.Context(), os.Getenv(archive)); err != nil {
			t.Fatal(archive+": ", err)
		}
	}
	d := &deployed{Cluster: c, t: t}
	if d.node, err = openSpace("/run/netns/" + c.Nodes[0].Netns); err != nil {
		t.Fatal(err)
	}
	lan, err := openSpace("/run/netns/" + name + ".lan")
	if err != nil {
		t.Fatal(err)
	}
	startWorld(t, lan)
	d.kubectl(pods(), "apply", "-f", "-")
	return d
}

// pods are there before Weir is, and until the end.
func pods() string {
	return namespaceYAML("tenant-a", "tenant: a") + namespaceYAML("tenant-b", "tenant: b") + namespaceYAML("stranger", "") +
		namespaceYAML("ingress", "role: ingress") + namespaceYAML("monitoring", "role: monitoring") +
		namespaceYAML("http", "") + namespaceYAML("names", "") +
		podYAML("tenant-a", "web") + podYAML("tenant-a", "client") + podYAML("tenant-b", "web") +
		podYAML("ingress", "controller") + podYAML("monitoring", "prometheus") + podYAML("stranger", "client") +
		podYAML("http", "web") + podYAML("http", "echo") + podYAML("http", "client") + podYAML("http", "other") +
		podYAML("names", "client")
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

// weir runs weir in the agent's container.
func (d *deployed) weir(args ...string) string {
	d.t.Helper()
	return d.kubectl("", append([]string{"-n", "weir-system", "exec", "daemonset/weir", "-c", "agent", "--", "/weir"}, args...)...)
}

// enforced returns once all objects that are there are enforced.
func (d *deployed) enforced() {
	d.t.Helper()
	d.weir("status", "--wait", "--timeout=30s")
}

// pod is a running one.
type pod struct {
	*space
	ip string
}

// web is where it answers.
func (p pod) web() string { return p.ip + ":80" }

// pod waits for a pod to be ready, and finds it.
func (d *deployed) pod(namespace, name string) pod {
	d.t.Helper()
	d.kubectl("", "-n", namespace, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=60s")
	ip := d.kubectl("", "-n", namespace, "get", "pod", name, "--output=jsonpath={.status.podIP}")
	s, err := podSpace(d.Nodes[0].Root(), netip.MustParseAddr(ip))
	if err != nil {
		d.t.Fatal(err)
	}
	return pod{s, ip}
}

// podYAML is a web server.
func podYAML(namespace, name string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: %q, imagePullPolicy: Never, args: [netexec, --http-port=80, --udp-port=-1]}
`, name, namespace, name, cluster.AgnhostImage)
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

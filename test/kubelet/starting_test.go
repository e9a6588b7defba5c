package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/test/cluster"
	"github.com/weirnet/weir/test/node"
)

// TestStarting: pods under a policy that lets nothing out, and pods that no policy
// selects, which connect from their first instruction on.
func TestStarting(t *testing.T) {
	if os.Getenv("WEIR_TEST_CLUSTER") == "" {
		t.Skip("this builds Kubernetes, which takes ten minutes the first time: set WEIR_TEST_CLUSTER=1")
	}
	if os.Getuid() != 0 {
		t.Fatal("a cluster needs root")
	}
	cache, err := cluster.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.Build(t.Context(), cache, t.Output()); err != nil {
		t.Fatal(err)
	}
	for i, config := range []cluster.Config{{CNI: "bridge", DualStack: true}, {CNI: "ptp"}} {
		t.Run(config.CNI, func(t *testing.T) {
			config.Name = node.UniqueName("weirtest", 700+i)
			t.Cleanup(func() {
				if err := cluster.Down(config.Name); err != nil {
					t.Error(err)
				}
			})
			c, err := cluster.Up(t.Context(), config, cache, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			s := newStage(t, c)
			s.startAgent()
			t.Run("alone", s.alone)
			t.Run("together", s.together)
			t.Run("stuck", s.stuck)
			t.Run("plugin", s.plugin)
		})
	}
}

// stage is a cluster with the program, images and a server on its node.
type stage struct {
	t       *testing.T
	c       *cluster.Cluster
	node    *cluster.Node
	weir    string // the program, as seen from the node
	agent   *exec.Cmd
	ended   <-chan struct{} // the agent has
	targets []string
	made    int
}

const closedPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {matchLabels: {app: closed}}
  policyTypes: [Egress, Ingress]
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: server, image: 'eager:test', imagePullPolicy: Never, command: [/weir, serve, ':80']}]
`

func newStage(t *testing.T, c *cluster.Cluster) *stage {
	t.Helper()
	s := &stage{t: t, c: c, node: &c.Nodes[0], weir: filepath.Join(c.Dir(), "weir")}
	if built := os.Getenv("WEIR_BIN"); built != "" {
		run(t, "cp", built, s.weir)
	} else {
		build(t, s.weir, "./cmd/weir")
	}
	eager := filepath.Join(t.TempDir(), "eager")
	build(t, eager, "./test/kubelet/eager")
	archive := eager + ".tar"
	run(t, "go", "run", "./deploy/image", "-binary", eager, "-tag", "eager:test", "-o", archive)
	if err := c.Load(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	s.kubectl(closedPolicy, "apply", "-f", "-")
	s.kubectl("", "wait", "--for=condition=Ready", "pod/server", "--timeout=60s")
	for _, a := range strings.Fields(s.kubectl("", "get", "pod", "server", "--output=jsonpath={.status.podIPs[*].ip}")) {
		if strings.Contains(a, ":") {
			a = "[" + a + "]"
		}
		s.targets = append(s.targets, a+":80")
	}
	return s
}

// build builds a program of this module.
func build(t *testing.T, to, pkg string) {
	t.Helper()
	run(t, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, pkg)
}

// run runs a program in the module's root.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func (s *stage) kubectl(stdin string, args ...string) string {
	s.t.Helper()
	out, err := s.c.Kubectl(s.t.Context(), stdin, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// inside runs the program on the node.
func (s *stage) inside(args ...string) (string, error) {
	out, err := s.node.Command(s.weir, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("weir %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (s *stage) startAgent() {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.c.Dir(), "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.agent = s.node.Command(s.weir, "agent", "--kubeconfig", s.c.KubeconfigInside(), "--node-name", s.node.Name, "--metrics-addr", "")
	s.agent.Stdout, s.agent.Stderr = log, log
	if err := s.agent.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = s.agent.Wait() // killed, or its log tells
		close(ended)
	}()
	s.ended = ended
	var out string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if out, err = s.inside("status", "--wait"); err == nil {
			return
		}
		select {
		case <-ended:
			end = time.Now()
		default: // its socket takes a moment
		}
	}
	text, _ := os.ReadFile(log.Name())
	s.t.Fatalf("%v\n%s\n%s", err, out, text)
}

// stopAgent ends the agent itself: the command is nsenter, which waits for it.
func (s *stage) stopAgent() {
	s.t.Helper()
	out, err := s.inside("status", "-o", "json")
	var st struct{ PID int }
	if jsonErr := json.Unmarshal([]byte(out), &st); jsonErr != nil || st.PID == 0 {
		s.t.Fatalf("%v, %v", jsonErr, err)
	}
	if out, err := s.node.Command("kill", "-KILL", fmt.Sprint(st.PID)).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	<-s.ended
}

// seen is what a pod said.
type seen struct {
	Tried, Passed int
	First         time.Duration
}

// create makes pods at once, n of each app, and returns their names.
func (s *stage) create(t *testing.T, n int, apps ...string) (names []string) {
	t.Helper()
	var text strings.Builder
	s.made++
	for i := range n {
		for _, app := range apps {
			name := fmt.Sprintf("%s-%d-%d", app, s.made, i)
			names = append(names, name)
			fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\n"+
				"spec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  containers: [{name: eager, image: 'eager:test', imagePullPolicy: Never, command: [/weir], args: ['3s', '%s']}]\n",
				name, app, strings.Join(s.targets, "', '"))
		}
	}
	s.kubectl(text.String(), "create", "-f", "-")
	return names
}

// said waits for what a pod says in the end.
func (s *stage) said(t *testing.T, name string) (is seen) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if _, err := s.c.Kubectl(ctx, "", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+name, "--timeout=90s"); err != nil {
		status, _ := s.inside("status")
		t.Fatalf("%v\n%s\n%s", err, s.kubectl("", "describe", "pod", name), status)
	}
	if err := json.Unmarshal([]byte(s.kubectl("", "logs", name)), &is); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d of %d attempts passed, the first after %v", name, is.Passed, is.Tried, is.First)
	return is
}

// check holds what pods said to what they may.
func (s *stage) check(t *testing.T, names []string, firstWithin time.Duration) {
	t.Helper()
	for _, name := range names {
		is := s.said(t, name)
		switch closed := strings.HasPrefix(name, "closed"); {
		case is.Tried < 10:
			t.Errorf("%s made only %d attempts", name, is.Tried)
		case closed && is.Passed > 0:
			t.Errorf("%s: %d of %d attempts passed", name, is.Passed, is.Tried)
		case !closed && (is.Passed == 0 || is.First > firstWithin):
			t.Errorf("%s: the first of %d attempts passed after %v", name, is.Tried, is.First)
		}
	}
	s.kubectl("", append([]string{"delete", "pod", "--wait=true"}, names...)...)
}

// soon is by when a pod that nothing holds up has connected, on a busy machine.
// What the API server must tell first takes several times as long.
const soon = 100 * time.Millisecond

// alone: one pod at a time is under its own policy at once, or under none.
func (s *stage) alone(t *testing.T) {
	s.t = t
	for range 3 {
		for _, app := range []string{"closed", "free"} {
			s.check(t, s.create(t, 1, app), soon)
		}
	}
}

// crowded is that for one of many that start at once on a few CPUs.
const crowded = 3 * time.Second

// together: several start at once. None passes what it must not; for one that no
// policy selects it may take a moment to find the process that tells which it is.
func (s *stage) together(t *testing.T) {
	s.t = t
	s.check(t, s.create(t, 4, "closed", "free"), crowded)
}

// stuckPods never start: what they mount is not there.
const stuckPods = `
apiVersion: v1
kind: Pod
metadata: {name: stuck-closed, labels: {app: closed}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: eager, image: 'eager:test', imagePullPolicy: Never, command: [/weir], volumeMounts: [{name: missing, mountPath: /missing}]}]
  volumes: [{name: missing, configMap: {name: there-is-none}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stuck-free, labels: {app: free}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: eager, image: 'eager:test', imagePullPolicy: Never, command: [/weir], volumeMounts: [{name: missing, mountPath: /missing}]}]
  volumes: [{name: missing, configMap: {name: there-is-none}}]
`

// stuck: pods that wait for ever hold up nobody, and lend nobody their policy.
func (s *stage) stuck(t *testing.T) {
	s.t = t
	s.kubectl(stuckPods, "create", "-f", "-")
	defer func() { s.kubectl(stuckPods, "delete", "--wait=true", "-f", "-") }()
	s.kubectl("", "wait", "--for=jsonpath={.spec.nodeName}="+s.node.Name, "pod/stuck-closed", "pod/stuck-free", "--timeout=30s")
	for range 3 {
		for _, app := range []string{"closed", "free"} {
			s.check(t, s.create(t, 1, app), soon)
		}
	}
	s.check(t, s.create(t, 4, "closed", "free"), crowded)
	for _, name := range []string{"stuck-closed", "stuck-free"} {
		if ip := s.kubectl("", "get", "pod", name, "--output=jsonpath={.status.podIP}"); ip != "" {
			t.Errorf("%s has started: %s", name, ip)
		}
	}
}

// plugin: with the CNI plugin in the chain there is no guessing, and no pod starts
// without an agent.
func (s *stage) plugin(t *testing.T) {
	s.t = t
	if _, err := s.inside("cni", "install"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // containerd reads it
	s.check(t, s.create(t, 4, "closed", "free"), soon)

	s.stopAgent()
	names := s.create(t, 1, "closed", "free")
	time.Sleep(4 * time.Second)
	for _, name := range names {
		if phase := s.kubectl("", "get", "pod", name, "--output=jsonpath={.status.phase}"); phase != "Pending" {
			t.Errorf("%s is %s without an agent", name, phase)
		}
	}
	s.startAgent()
	s.check(t, names, soon)
	if _, err := s.inside("cni", "uninstall"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	s.check(t, s.create(t, 1, "closed"), 0)
}

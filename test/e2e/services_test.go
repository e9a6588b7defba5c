package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asker is a process of a pod that keeps one connected UDP socket: it prints what
// each line it reads is answered with.
type asker struct {
	in  io.Writer
	out *bufio.Reader
}

// askFrom, in the environment, makes the test program an asker: the namespace of
// the pod, and where to connect to.
const askFrom = "WEIR_E2E_ASK_FROM"

func TestMain(m *testing.M) {
	if from := os.Getenv(askFrom); from != "" {
		if err := beAsker(from, os.Getenv("WEIR_E2E_ASK")); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func beAsker(netns, address string) error {
	s, err := openSpace(netns)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	c, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	lines, answer := bufio.NewScanner(os.Stdin), make([]byte, 1500)
	for lines.Scan() {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		n := 0
		if _, err = c.Write(lines.Bytes()); err == nil {
			n, err = c.Read(answer)
		}
		if err != nil {
			fmt.Println("error", err)
		} else {
			fmt.Printf("%s\n", answer[:n])
		}
	}
	return lines.Err()
}

// asker starts one in a pod: in its network namespace, and below the cgroup of all
// pods of its node.
func (d *deployed) asker(p pod, node int, address string) asker {
	d.t.Helper()
	var found []string
	for _, root := range []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"} {
		if len(found) == 0 {
			found, _ = filepath.Glob(filepath.Join(d.Nodes[node].Root(), root, "kubepods*"))
		}
	}
	if len(found) == 0 {
		d.t.Fatal("there is no cgroup of pods")
	}
	// Where there are controllers, only leaves have processes.
	leaf, err := os.MkdirTemp(found[0], "weir-e2e-")
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = os.Remove(leaf) })
	dir, err := os.Open(leaf)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), askFrom+"=/proc/self/fd/3", "WEIR_E2E_ASK="+address)
	cmd.ExtraFiles = []*os.File{p.file}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return asker{in, bufio.NewReader(out)}
}

func (a asker) ask(question string) string {
	if _, err := fmt.Fprintln(a.in, question); err != nil {
		return "error " + err.Error()
	}
	line, err := a.out.ReadString('\n')
	if err != nil {
		return "error " + err.Error()
	}
	return strings.TrimSpace(line)
}

// services: a pod's socket is sent to a backend, policy is asked about that and its
// port, and the socket ends with the backend.
func (d *deployed) services() {
	d.kubectl(fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: services}
spec:
  selector: {role: echo}
  ports: [{port: 5000, targetPort: 8081, protocol: UDP}]
%s%s%s`, echoYAML(d.Nodes[0].Name, "one"), echoYAML(d.Nodes[len(d.Nodes)-1].Name, "two"),
		podYAML(d.Nodes[0].Name, "services", "client")), "apply", "-f", "-")
	client := d.pod("services", "client")
	d.pod("services", "one")
	d.pod("services", "two")
	address := d.kubectl("", "-n", "services", "get", "service", "echo", "--output=jsonpath={.spec.clusterIP}") + ":5000"

	var first asker
	var backend string
	if said := eventually(20*time.Second, func() string {
		first = d.asker(client, 0, address)
		if backend = first.ask("hostname"); backend != "one" && backend != "two" {
			return backend
		}
		return ""
	}); said != "" {
		d.t.Fatal("no backend answered: ", said)
	}
	other := map[string]string{"one": "two", "two": "one"}[backend]
	d.kubectl("", "-n", "services", "label", "pod", backend, "role-")
	if said := eventually(20*time.Second, func() string {
		if got := first.ask("hostname"); !strings.HasPrefix(got, "error") {
			return "answered by " + got
		}
		return ""
	}); said != "" {
		d.t.Error("a socket to a backend that went: ", said)
	}
	again := d.asker(client, 0, address)
	if got := again.ask("hostname"); got != other {
		d.t.Errorf("a new socket is answered by %q, want %s", got, other)
	}

	d.apply(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: not-echo, namespace: services}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress: [{toEntities: [all]}]
  egressDeny:
  - toEndpoints: [{matchLabels: {role: echo}}]
    toPorts: [{ports: [{port: "8081", protocol: UDP}]}]
`)
	d.enforced()
	if got := again.ask("hostname"); !strings.HasPrefix(got, "error") {
		d.t.Errorf("the backend's port is denied, and through the service %s answers", got)
	}
}

// echoYAML is a pod that tells its name by UDP.
func echoYAML(node, name string) string {
	pod := podYAML(node, "services", name)
	pod = strings.Replace(pod, "{app: "+name+"}", "{role: echo}", 1)
	return strings.Replace(pod, "--udp-port=-1", "--udp-port=8081", 1)
}

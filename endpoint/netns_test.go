package endpoint

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needRoot skips where the test can't run; in CI that is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root, and CI must not skip it")
	}
	t.Skip("needs root: it makes network namespaces")
}

// inside in the environment says that the process is the one ownNamespace
// started.
const inside = "WEIR_TEST_INSIDE"

// ownNamespace runs the rest of the test in a process of its own, in a network
// namespace of its own, which goes away with it: whatever thread does
// something, it is in there. false: that process has run the test.
func ownNamespace(t *testing.T) bool {
	t.Helper()
	needRoot(t)
	if os.Getenv(inside) == t.Name() {
		run(t, "ip link set lo up")
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	// The parent-death signal is about the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

func run(t *testing.T, format string, args ...any) string {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return string(out)
}

// testPod is a process that holds a network namespace, joined to the current
// one by a veth pair: dev here, eth0 there.
type testPod struct {
	t   *testing.T
	cmd *exec.Cmd
	dev string
}

func newPod(t *testing.T, dev string, addrs ...string) *testPod {
	t.Helper()
	p := &testPod{t: t, dev: dev, cmd: exec.Command("unshare", "--net", "sh", "-c", "echo up; exec sleep 600")}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatalf("wait for the pod's namespace: %v", err)
	}
	p.link(addrs...)
	return p
}

func (p *testPod) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *testPod) link(addrs ...string) {
	p.t.Helper()
	run(p.t, "ip link add %s type veth peer name eth0 netns %d", p.dev, p.cmd.Process.Pid)
	run(p.t, "ip link set %s up", p.dev)
	p.in("ip link set lo up")
	p.in("ip link set eth0 up")
	for _, a := range addrs {
		p.addr("add", a)
	}
}

func (p *testPod) addr(verb, a string) {
	p.t.Helper()
	nodad := ""
	if strings.Contains(a, ":") && verb == "add" {
		nodad = "nodad"
	}
	p.in("ip addr %s %s dev eth0 %s", verb, a, nodad)
}

func (p *testPod) in(format string, args ...any) string {
	p.t.Helper()
	return run(p.t, "nsenter -t %s -n %s", strconv.Itoa(p.cmd.Process.Pid), fmt.Sprintf(format, args...))
}

func (p *testPod) mac() [6]byte {
	p.t.Helper()
	_, after, ok := strings.Cut(p.in("ip -o link show eth0"), "link/ether ")
	if !ok {
		p.t.Fatal("no MAC of eth0")
	}
	hw, err := net.ParseMAC(strings.Fields(after)[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return [6]byte(hw)
}

// eventually polls until ok says so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 5 s: %s", what)
}

package test

import (
	"bytes"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/test/node"
)

// TestBrokenAtStart: an agent that finds a file which was never valid is not
// ready, says which, and enforces the rest.
func TestBrokenAtStart(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/not-started.txtar")
	n := s.nodes[0]
	if err := s.objects.Write("broken.yaml", "kind: NetworkPolicy\nmetadata: {name: x\n"); err != nil {
		t.Fatal(err)
	}
	w := n.NewWeir(program, s.objects, s)
	s.started[n.Name], s.noExplain = true, true
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	if err := s.status("broken.yaml"); err != nil {
		t.Fatal(err)
	}
	if out, err := w.Command(t.Context(), "status"); err == nil {
		t.Errorf("status is content: %s", out)
	}
	// The rest is in force.
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = s.mustTimeOut("shop/stranger", "shop/web", 8080); err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
	s.check("shop/client GET shop/web:8080/a => 200")
	s.check("shop/client GET shop/web:8080/b => 403")
	if err := s.objects.Remove("broken.yaml"); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	if out, err := w.Command(t.Context(), "status"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestSecondAgent: one agent has a state; another is told so and changes
// nothing.
func TestSecondAgent(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/http.txtar")
	n := s.nodes[0]
	var out bytes.Buffer
	cmd := exec.Command(program, n.Weir().AgentArgs("--metrics-addr", "")...)
	cmd.Stdout, cmd.Stderr = &out, &out
	second, err := n.StartProcess(cmd)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-second.Done():
	case <-time.After(patience):
		t.Error("a second agent runs on the same state")
		second.Kill()
	}
	if second.Err() == nil || !strings.Contains(out.String(), n.State) {
		t.Errorf("%v: %s", second.Err(), &out)
	}
	s.check("shop/client GET shop/web:8080/a => 200 records=1")
	s.check("shop/stranger tcp shop/db:5432 => dropped")
}

// TestTwoStatesOneUninstall: what one node's Weir leaves does not touch the
// other's.
func TestTwoStatesOneUninstall(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/two-nodes.txtar")
	a, b := s.nodes[0].Weir(), s.nodes[1].Weir()
	if a.RunDir == b.RunDir || slices.Contains(a.Pids(), b.Agent().Pid()) {
		t.Fatal("the nodes share a state")
	}
	others := b.Pids()
	open := s.places["shop/client"].HTTPClient(patience)
	defer open.CloseIdleConnections()
	to := s.places["shop/web-b"].addrs[1]
	_, first, err := get(open, to, 8080, "/a")
	if err != nil {
		t.Fatal(err)
	}
	a.Agent().Stop()
	if out, err := a.Command(t.Context(), "uninstall"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if left := a.Pids(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if now := b.Pids(); !slices.Equal(now, others) {
		t.Errorf("the other node's processes are %v, were %v", now, others)
	}
	status, second, err := get(open, to, 8080, "/a")
	if err != nil || status != 200 || second.Conn != first.Conn {
		t.Errorf("a connection through the other node's proxy: %d, %+v after %+v, %v", status, second, first, err)
	}
	s.noExplain = true // half of the policy's subjects are on their own now
	s.check("shop/client GET shop/web-b:8080/a => 200")
	s.check("shop/client GET shop/web-b:8080/b => 403")
	s.check("shop/stranger GET shop/web-b:8080/a => dropped")
	s.check("shop/client GET shop/web-a:8080/b => 200")
	s.check("shop/stranger GET shop/web-a:8080/a => 200")
}

// TestPodBeforeItsVeth and the other way round: whichever of a pod's object and
// interface comes first, it is enforced once both are there.
func TestPodBeforeItsVeth(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/not-started.txtar")
	s.must("start")
	n := s.nodes[0]
	s.noExplain = true
	// The interface first, its object later: until then it is closed, as a pod that
	// nobody knows.
	late, err := n.AddPod(node.PodObject("shop", "late", "app=web"), node.Routed)
	if err != nil {
		t.Fatal(err)
	}
	s.serve("shop/late", &place{Netns: late.Netns, addrs: late.Addrs, pod: late})
	s.must("wait")
	s.check("shop/stranger tcp shop/late:7000 => dropped")
	if err := s.objects.PutPod(late); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	s.check("shop/stranger tcp shop/late:7000 => dropped")
	s.check("shop/client GET shop/late:8080/b => 403")
	// The object first: of a pod that went, with its address.
	if err := errors.Join(late.Delete(), s.objects.RemovePod(late)); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	if err := s.objects.PutPod(late); err != nil {
		t.Fatal(err)
	}
	if err := s.status("waiting"); err != nil {
		t.Error(err)
	}
	again := late.Object.DeepCopy()
	early, err := n.AddPod(again, node.Routed)
	if err != nil {
		t.Fatal(err)
	}
	s.serve("shop/early", &place{Netns: early.Netns, addrs: early.Addrs, pod: early})
	s.must("wait")
	s.check("shop/stranger tcp shop/early:7000 => dropped")
	s.check("shop/client GET shop/early:8080/a => 200 seen=shop/client")
}

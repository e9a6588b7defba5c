package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weirnet/weir/policy"
)

const (
	uid1 = "2f0c9a4e-1111-4222-8333-0123456789ab"
	uid2 = "7d1b6a05-aaaa-4bbb-8ccc-ba9876543210"
)

func TestPodOfCgroup(t *testing.T) {
	hash, container := strings.Repeat("0a", 16), strings.Repeat("1b", 32)
	under := strings.ReplaceAll(uid1, "-", "_")
	for text, want := range map[string]string{
		"0::/kubepods/burstable/pod" + uid1 + "/" + container + "\n": uid1,
		"0::/kubepods/pod" + uid1:                                    uid1,
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/cri-containerd-" + container + ".scope\n": uid1,
		"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/crio-" + container + ".scope/container\n":        uid1,
		"0::/../../kubepods-pod" + under + ".slice/x":                                               uid1,
		"0::/kubepods/pod" + hash + "/" + container:                                                 hash,
		"12:memory:/kubepods/pod" + uid1 + "/x\n11:cpu,cpuacct:/kubepods/pod" + uid1 + "/x\n0::/\n": uid1,
		"0::/kubepods/pod" + uid1 + "/" + container + "/pod" + uid2:                                 uid1,
		"2:memory:/kubepods/pod" + uid1 + "/x\n1:cpu:/kubepods/pod" + uid2 + "/x\n":                 "",
		"0::/docker/" + container + "/kubepods/pod" + uid1 + "/x":                                   "",
		"0::/system.slice/docker-" + container + ".scope/kubepods/pod" + uid1:                       "",
		"0::/system.slice/containerd.service":                                                       "",
		"0::/kubepods/burstable":                                                                    "",
		"0::/kubepods/podman/podx":                                                                  "",
		"0::/kubepods/pod" + uid1[:35]:                                                              "",
		"0::/kubepods/pod" + uid1 + "0":                                                             "",
		"":                                                                                          "",
	} {
		if got := podOfCgroup(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		for i := range text { // none of its beginnings is another pod's
			if got := podOfCgroup(text[:i]); got != "" && got != uid1 && got != hash {
				t.Errorf("%q: %q", text[:i], got)
			}
		}
	}
}

func FuzzPodOfCgroup(f *testing.F) {
	f.Add("0::/kubepods/burstable/pod" + uid1 + "/x\n")
	f.Add("0::/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid1, "-", "_") + ".slice\n")
	f.Fuzz(func(t *testing.T, text string) {
		uid := podOfCgroup(text)
		if uid == "" {
			return
		}
		if !strings.Contains(strings.ReplaceAll(text, "_", "-"), "pod"+uid) {
			t.Errorf("%q: %q is not in it", text, uid)
		}
		// What a pod adds below its own cgroup changes nothing.
		last := strings.TrimRight(text, "\n")
		last = last[strings.LastIndex(last, "\n")+1:]
		if own := podOfCgroup(last); own != "" && podOfCgroup(last+"/pod"+uid2) != own {
			t.Errorf("%q: another with more behind it", last)
		}
	})
}

// cgroups is a directory of processes in which tests write of which pod each is.
type cgroups struct {
	t   *testing.T
	dir string
}

func (c cgroups) put(pid int, uid string) {
	c.t.Helper()
	dir := filepath.Join(c.dir, strconv.Itoa(pid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), fmt.Appendf(nil, "0::/kubepods/pod%s/x\n", uid), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "cgroup")); err != nil {
		c.t.Fatal(err)
	}
}

func (c cgroups) inhabitants() *Inhabitants {
	return newInhabitants(c.dir, netlink.GetNetNsIdByPid, slog.New(slog.DiscardHandler))
}

// TestInhabitants: whose processes are in a namespace is found, as they come, and
// only there.
func TestInhabitants(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	c := cgroups{t, t.TempDir()}
	p, q := newPod(t, "p1"), newPod(t, "p2")
	nsid := func(p *testPod) int32 {
		id, err := netlink.GetNetNsIdByPid(p.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return int32(id)
	}
	h := c.inhabitants()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c.put(os.Getpid(), uid2) // in this namespace, which no veth leads to
	h.ask(map[int32]bool{nsid(p): true})
	next := func(want map[int32][]string) {
		t.Helper()
		select {
		case got := <-h.results():
			if !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("found %v, want %v", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("nothing found, want %v", want)
		}
	}
	select {
	case got := <-h.results():
		t.Errorf("found %v, where nothing is", got)
	case <-time.After(100 * time.Millisecond):
	}
	c.put(q.cmd.Process.Pid, uid2)
	c.put(p.cmd.Process.Pid, uid1)
	next(map[int32][]string{nsid(p): {uid1}})
	h.ask(map[int32]bool{nsid(p): true, nsid(q): true})
	next(map[int32][]string{nsid(p): {uid1}, nsid(q): {uid2}})
	// A process that moves: what it was said to be is over.
	h.ask(map[int32]bool{nsid(q): true})
	c.put(q.cmd.Process.Pid, uid1)
	next(map[int32][]string{nsid(q): {uid1}})
}

// TestStuckPodHoldsUpNobody: a pod that waits for ever is nobody else's doubt,
// once a process says whose the interface is; what is of a pod that no object
// speaks of gets nobody's policy.
func TestStuckPodHoldsUpNobody(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	c := cgroups{t, t.TempDir()}
	n.inhabitants = c.inhabitants()
	// Not from the node's range of pods: that plays no part.
	n.start(podObject("db", "stuck"), onlyFrom("db", "api"), podObject("web", uid1))
	p := newPod(t, "p1", "10.9.0.1/32")
	policyOf := func(addr string) (closed, known bool) {
		e, ok := n.row(addr)
		info, _, err := n.datapath.Policies.Lookup(e.Policy)
		if err != nil {
			t.Fatal(err)
		}
		return info.Enforced[policy.Ingress] != 0, ok
	}
	eventually(t, "it is under the policy of both", func() bool {
		closed, known := policyOf("10.9.0.1")
		return closed && known
	})
	c.put(p.cmd.Process.Pid, uid1)
	eventually(t, "it is under its own, which closes nothing", func() bool {
		closed, known := policyOf("10.9.0.1")
		return !closed && known
	})
	if s := n.m.Status().Strangers; len(s) != 1 || s[0].State != StrangerStarting || !slices.Equal(s[0].Pods, []string{"shop/web"}) {
		t.Errorf("strangers: %+v", s)
	}
	n.submit(podObject("web", uid1, "10.9.0.1"))
	n.wait()
	if closed, known := policyOf("10.9.0.1"); closed || !known {
		t.Errorf("its object has the address: closed %v, known %v", closed, known)
	}

	// Only "db" waits. A pod whose object is late is not it.
	q := newPod(t, "p2", "10.9.0.2/32")
	c.put(q.cmd.Process.Pid, uid2)
	eventually(t, "it is closed", func() bool {
		s := n.m.Status().Strangers
		return len(s) == 1 && s[0].State == StrangerUnknown
	})
	n.submit(podObject("late", uid2))
	n.wait()
	if closed, known := policyOf("10.9.0.2"); closed || !known {
		t.Errorf("its object is there: closed %v, known %v", closed, known)
	}
	// A second interface of a pod whose address is known is not Weir's business.
	run(t, "ip link add p3 type veth peer name net1 netns %d", p.cmd.Process.Pid)
	p.in("ip addr add 192.168.7.1/24 dev net1")
	n.submit(gone(podObject("db", "stuck")), podObject("late", uid2, "10.9.0.2"))
	eventually(t, "it is left alone", func() bool {
		s := n.m.Status().Strangers
		return len(s) == 1 && s[0].Veth == "p3" && s[0].State == StrangerAlone
	})
}

// TestStaleAddressOfAnother: an address that another pod's object still has is its
// new pod's, by whose process it is, though neither is being deleted.
func TestStaleAddressOfAnother(t *testing.T) {
	if !ownNamespace(t) {
		return
	}
	n := newNode(t)
	c := cgroups{t, t.TempDir()}
	n.inhabitants = c.inhabitants()
	old := newPod(t, "p1", "10.9.0.1/32")
	c.put(old.cmd.Process.Pid, uid1)
	n.start(podObject("web", uid1, "10.9.0.1"), onlyFrom("db", "api"))
	free, _ := n.row("10.9.0.1")
	run(t, "ip link del %s", old.dev)
	n.submit(podObject("db", uid2))
	n.wait()
	p := newPod(t, "p2", "10.9.0.1/32")
	c.put(p.cmd.Process.Pid, uid2)
	at := ifindex(t, "p2")
	eventually(t, "it has the policy of db", func() bool {
		e, ok := n.row("10.9.0.1")
		info, _, err := n.datapath.Policies.Lookup(e.Policy)
		if err != nil {
			t.Fatal(err)
		}
		return ok && e.Ifindex == at && e.Policy != free.Policy && info.Enforced[policy.Ingress] != 0
	})
}

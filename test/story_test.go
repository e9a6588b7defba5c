package test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
)

// TestStories tells every story of stories/.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("stories/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			tell(t, file)
		})
	}
}

// TestStoriesWithClsact tells those again that take every path a packet has,
// with programs attached as kernels before 6.6 have it.
func TestStoriesWithClsact(t *testing.T) {
	for _, name := range []string{"network-policy", "http-egress", "http-both-ends", "host", "host-blocks", "node-policy", "nodeport", "small-mtu", "fragments", "pods-come-and-go", "two-nodes", "fqdn"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tell(t, "stories/"+name+".txtar", "--clsact")
		})
	}
}

// story is one that is being told.
type story struct {
	t       *testing.T
	network *node.Network
	objects node.Objects
	files   map[string]string
	nodes   []*node.Node
	places  map[string]*place
	// forwards: node address and port -> pod and port.
	forwards    map[netip.AddrPort]netip.AddrPort
	masqueraded map[netip.AddrPort]bool
	// noExplain: what is in the directory is not what is in force.
	noExplain bool
	noEcho53  bool                    // real DNS servers have the port
	taught    map[netip.Addr][]string // names, by what pods were told of them; "namespace/name" if it counts there only
	// beside: addresses that a node has and its object does not name.
	beside  map[string][]netip.Addr
	started map[string]bool // by node
	args    []string        // of every agent
	// failsafe is the --host-failsafe of the agents that were started last.
	failsafe string

	mu      sync.Mutex
	records []flow.Record
	log     bytes.Buffer
}

// place is where flows begin and end.
type place struct {
	*node.Netns
	addrs []netip.Addr
	pod   *node.Pod // nil: a node or the outside
}

var stories atomic.Int32

// tell runs a story's script and returns the story as it stands then; all of
// it goes when the test ends. Its agents get args.
func tell(t *testing.T, file string, args ...string) *story {
	t.Helper()
	needRoot(t)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	a := parseArchive(string(text))
	s := &story{
		t: t, args: args, files: a.files, places: map[string]*place{}, started: map[string]bool{},
		beside: map[string][]netip.Addr{}, forwards: map[netip.AddrPort]netip.AddrPort{}, masqueraded: map[netip.AddrPort]bool{}, taught: map[netip.Addr][]string{}, objects: node.Objects{Dir: t.TempDir()},
	}
	s.files["many.zone"], s.files["big.zone"] = manyNames(), bigNames()
	s.make(a.text)
	number := 0
	for line := range strings.Lines(a.text) {
		number++
		w, err := words(line)
		if err == nil && len(w) > 0 {
			err = s.do(w)
		}
		if err != nil {
			t.Errorf("%s:%d: %s\n\t%v", file, number, strings.TrimSpace(line), err)
			if isCommand(w) {
				t.FailNow() // what follows stands on it
			}
		}
	}
	return s
}

// make makes the network; the script tells its MTU, and whether it has servers
// of names.
func (s *story) make(script string) {
	s.t.Helper()
	o := node.NetworkOptions{Name: node.UniqueName(prefix, int(stories.Add(1)))}
	for line := range strings.Lines(script) {
		if w, _ := words(line); len(w) == 2 && w[0] == "wan-mtu" {
			o.WANMTU, _ = strconv.Atoi(w[1])
		} else if len(w) > 0 && w[0] == "dns" {
			s.noEcho53 = true
		}
	}
	var err error
	if s.network, err = node.NewNetwork(o); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.network.Close(); err != nil {
			s.t.Error(err)
		}
		if s.t.Failed() {
			s.t.Logf("what Weir printed:\n%s", s.printed())
		}
	})
	s.serve("outside", &place{Netns: s.network.Outside, addrs: s.network.OutsideAddrs()})
}

// Write takes what Weir prints.
func (s *story) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

func (s *story) printed() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func isCommand(w []string) bool { return !slices.Contains(w, "=>") }

// do runs one line.
func (s *story) do(w []string) error {
	if !isCommand(w) {
		if err := s.start(); err != nil {
			return err
		}
		p, err := s.parseProbe(w)
		if err != nil {
			return err
		}
		return s.probe(p)
	}
	flags, rest := map[string]string{}, []string{}
	for _, arg := range w[1:] {
		if k, v, ok := strings.Cut(arg, "="); ok {
			flags[k] = v
		} else {
			rest = append(rest, arg)
		}
	}
	need := func(n int) error {
		if len(rest) < n {
			return fmt.Errorf("%s needs %d arguments", w[0], n)
		}
		return nil
	}
	switch w[0] {
	case "wan-mtu":
		return nil // done in make
	case "node":
		if err := need(1); err != nil {
			return err
		}
		return s.addNode(rest[0], flags)
	case "pod":
		if err := need(1); err != nil {
			return err
		}
		_, err := s.addPod(rest[0], flags, slices.Contains(rest, "bridged"))
		return err
	case "namespace":
		if err := need(1); err != nil {
			return err
		}
		return s.objects.PutNamespace(rest[0], w[2:]...)
	case "forward":
		if err := need(2); err != nil {
			return err
		}
		return s.forward(rest[0], rest[1], slices.Contains(rest, "masquerade"))
	case "world":
		if err := need(3); err != nil {
			return err
		}
		return s.addWorld(rest[0], rest[1:])
	case "link":
		if err := need(2); err != nil {
			return err
		}
		return s.addLink(rest[0], rest[1:], flags)
	case "service":
		if err := need(4); err != nil {
			return err
		}
		return s.addService(rest[0], rest[1:3], rest[3:], flags)
	case "dns":
		if len(rest) == 1 && rest[0] == "none" {
			return nil
		}
		if err := need(2); err != nil {
			return err
		}
		return s.addDNS(rest[0], rest[1], rest[2:], flags)
	case "apply":
		if err := need(1); err != nil {
			return err
		}
		text, ok := s.files[rest[0]]
		if !ok {
			return fmt.Errorf("the story has no file %s", rest[0])
		}
		name := rest[0]
		if as := flags["as"]; as != "" {
			name = as
		}
		return s.objects.Write(name, text)
	case "remove":
		if err := need(1); err != nil {
			return err
		}
		return s.objects.Remove(rest[0])
	case "delete":
		if err := need(1); err != nil {
			return err
		}
		return s.deletePod(rest[0])
	case "explain":
		s.noExplain = len(rest) > 0 && rest[0] == "off"
		return nil
	case "start":
		return s.start(w[1:]...)
	case "wait":
		return s.wait()
	case "status":
		return s.status(strings.Join(w[1:], " "))
	}
	return fmt.Errorf("no such command: %s", w[0])
}

// must runs a line that a test wrote itself.
func (s *story) must(line string) {
	s.t.Helper()
	w, err := words(line)
	if err == nil {
		err = s.do(w)
	}
	if err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
}

// check is must that goes on.
func (s *story) check(line string) {
	s.t.Helper()
	w, err := words(line)
	if err == nil {
		err = s.do(w)
	}
	if err != nil {
		s.t.Errorf("%s: %v", line, err)
	}
}

// start starts an agent on each node that has none and follows its flows.
func (s *story) start(args ...string) error {
	if _, err := s.node(""); err != nil {
		return err
	}
	if i := slices.Index(args, "--host-failsafe"); i >= 0 {
		s.failsafe = args[i+1]
	}
	for _, n := range s.nodes {
		if s.started[n.Name] {
			continue
		}
		s.started[n.Name] = true
		w := n.NewWeir(program, s.objects, s)
		err := w.Start(slices.Concat(s.args, args)...)
		if err == nil {
			err = w.Wait(context.Background())
		}
		if err == nil {
			err = s.follow(n)
		}
		if err != nil {
			s.t.Fatalf("start Weir on node %s: %v", n.Name, err) // nothing can be seen without it
		}
	}
	return nil
}

// follow collects the records of a node until the story ends.
func (s *story) follow(n *node.Node) error {
	stop, err := n.Weir().Flows(context.Background(), func(r flow.Record) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.records = append(s.records, r)
	})
	if err != nil {
		return err
	}
	s.t.Cleanup(func() { _ = stop() })
	return nil
}

func (s *story) wait() error {
	if err := s.start(); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := n.Weir().Wait(context.Background()); err != nil {
			return err
		}
	}
	return nil
}

// status asks for a text in the output of `weir status`, whatever its exit
// status.
func (s *story) status(text string) error {
	var out string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, _ = s.nodes[len(s.nodes)-1].Weir().Command(context.Background(), "status")
		if strings.Contains(out, text) {
			return nil
		}
	}
	return fmt.Errorf("status does not say %q:\n%s", text, out)
}

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/weirnet/weir/test/cluster/machine"
)

// ErrDown says that there is no cluster of that name.
var ErrDown = errors.New("cluster is not up")

// Cluster is one that is up. Its methods may be called concurrently, by
// several processes as well, and by root only.
type Cluster struct {
	Config
	// Cache is where its programs are.
	Cache string
	// Control is the machine of the control plane, in namespace NAME.control.
	Control machine.Running
	Nodes   []Node
	// CameUp is whether Up got to its end.
	CameUp bool
}

// Node is one node of a cluster.
type Node struct {
	// Name of the Node object.
	Name string
	// Netns is the name of its network namespace, a file in /run/netns.
	Netns string
	// Addrs are its internal addresses, IPv4 first.
	Addrs []netip.Addr
	// PodCIDRs are where its pods' addresses come from, IPv4 first.
	PodCIDRs []netip.Prefix
	machine.Running
}

// ContainerdSocket is the path of containerd's socket as seen from the host.
func (n *Node) ContainerdSocket() string { return n.Root() + containerdSocket }

// Open finds the cluster of that name, DefaultName if empty. The error is
// ErrDown where there is none, nor the rest of one.
func Open(name string) (*Cluster, error) {
	config, err := Config{Name: name}.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Config: config}
	text, err := os.ReadFile(c.path("cluster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrDown
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", err)
	}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.path("cluster.json"), err)
	}
	return c, nil
}

// path is a file of the cluster on the host, and in all of its machines.
func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{dir(c.Name)}, parts...)...)
}

// save keeps what Down must know.
func (c *Cluster) save() error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the cluster's state: %w", err)
	}
	part := c.path("cluster.json.part")
	if err := os.WriteFile(part, text, 0o644); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	return os.Rename(part, c.path("cluster.json"))
}

// Dir has all logs and other files of the cluster.
func (c *Cluster) Dir() string { return c.path() }

// Kubeconfig is a file for clients on the host, with all rights.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// KubeconfigInside is one for clients within the cluster's network.
func (c *Cluster) KubeconfigInside() string { return c.path("pki", "admin.kubeconfig") }

// AuditLog has a line of JSON for each request by service accounts of other
// namespaces than kube-system: verb, resource, and whether it was allowed.
func (c *Cluster) AuditLog() string { return c.path("control", "audit.log") }

// Log is where a process of a machine ("control", or a node's name) writes.
func (c *Cluster) Log(machine, process string) string { return c.path(machine, process+".log") }

// Program is the path of a program that was built for the cluster.
func (c *Cluster) Program(name string) string { return filepath.Join(c.Cache, name) }

// Kubectl runs kubectl with this standard input and returns what it printed on
// standard output. An error holds what it said.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Program("kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	cmd.Stdin = strings.NewReader(stdin)
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// Load imports every image of a docker-archive into every node.
func (c *Cluster) Load(ctx context.Context, archive string) error {
	for i := range c.Nodes {
		if err := c.Nodes[i].Load(ctx, archive); err != nil {
			return err
		}
	}
	return nil
}

// Load imports every image of a docker-archive into the node.
func (n *Node) Load(ctx context.Context, archive string) error {
	cmd := exec.CommandContext(ctx, "ctr", "--address", n.ContainerdSocket(), "--namespace", "k8s.io", "images", "import", archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load %s into %s: %w: %s", archive, n.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// giveToCaller lets the user who called sudo read a file.
func giveToCaller(path string) error {
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil {
		return nil // nobody
	}
	return os.Chown(path, uid, -1)
}

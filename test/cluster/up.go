package cluster

import (
	"context"
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/test/cluster/machine"
)

// ErrOther says that a cluster of that name is up with another configuration.
var ErrOther = errors.New("the cluster is up with another configuration")

// Up brings a cluster up from what Build left in the cache, and says on
// progress what it does. It returns when the nodes are ready and the DNS
// service runs. If the cluster is up already it is returned as it is; the rest
// of one that died is removed first. A cluster that does not come up is left
// as it is, for its logs: Down removes it.
func Up(ctx context.Context, config Config, cache string, progress io.Writer) (*Cluster, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(config.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := Open(config.Name)
	switch {
	case err == nil && old.Complete():
		want := config
		if want.Port == 0 {
			want.Port = old.Port
		}
		if old.Config != want {
			return old, ErrOther
		}
		fmt.Fprintf(progress, "cluster %s is already up\n", old.Name)
		return old, nil
	case err == nil:
		fmt.Fprintln(progress, "removing the rest of a cluster that ended")
		if err := old.stop(); err != nil {
			return nil, err
		}
	case !errors.Is(err, ErrDown):
		return nil, err
	}
	c := &Cluster{Config: config, Cache: cache}
	for i := range config.NodeCount {
		name := fmt.Sprintf("node%d", i+1)
		c.Nodes = append(c.Nodes, Node{Name: name, Netns: c.netns(name), Addrs: c.lanAddrs(nodeNumber(i)), PodCIDRs: c.podCIDRs(i + 1)})
	}
	began := time.Now()
	if err := c.up(ctx, func(what string) {
		fmt.Fprintf(progress, "%5.1fs  %s\n", time.Since(began).Seconds(), what)
	}); err != nil {
		return nil, fmt.Errorf("bring cluster %s up: %w (logs are in %s)", c.Name, err, c.path())
	}
	return c, nil
}

// Complete tells whether the cluster came up, and all of its machines still
// run.
func (c *Cluster) Complete() bool {
	for _, n := range c.Nodes {
		if !n.Alive() {
			return false
		}
	}
	return c.CameUp && c.Control.Alive()
}

// lock keeps others from bringing the same cluster up or down.
func lock(name string) (unlock func(), err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("lock cluster %s: %w", name, err)
		}
	}()
	for {
		if err := os.MkdirAll(dir(name), 0o711); err != nil {
			return nil, err
		}
		d, err := os.Open(dir(name))
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
			d.Close()
			return nil, err
		}
		// Who held it may have removed the directory.
		held, err := d.Stat()
		if err != nil {
			d.Close()
			return nil, err
		}
		if now, err := os.Stat(dir(name)); err == nil && os.SameFile(held, now) {
			return func() { d.Close() }, nil
		}
		d.Close()
	}
}

func (c *Cluster) up(ctx context.Context, say func(string)) error {
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", c.Port))
	if err != nil {
		return fmt.Errorf("take the API server's port on the host: %w", err)
	}
	defer l.Close()
	c.Port = l.Addr().(*net.TCPAddr).Port
	if err := c.save(); err != nil {
		return err
	}
	if err := c.certificates(); err != nil {
		return err
	}
	network, err := c.makeNetwork(ctx)
	if err != nil {
		return err
	}
	defer network.release()
	say("network")
	if err := c.startMachines(network, l.(*net.TCPListener)); err != nil {
		return err
	}
	say("machines started: etcd, API server, containerd")

	var mu sync.Mutex
	tell := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		say(what)
	}
	g, gctx := errgroup.WithContext(ctx)
	for i := range c.Nodes {
		n := &c.Nodes[i]
		g.Go(func() error {
			if err := n.waitForContainerd(gctx); err != nil {
				return err
			}
			if err := n.Load(gctx, filepath.Join(c.Cache, imagesArchive)); err != nil {
				return err
			}
			tell(n.Name + ": images loaded")
			return nil
		})
	}
	g.Go(func() error {
		if err := c.waitForAPI(gctx); err != nil {
			return err
		}
		tell("API server is ready")
		for _, n := range c.Nodes {
			if err := c.describeNode(gctx, n); err != nil {
				return err
			}
		}
		tell("nodes are registered")
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	// A pod whose image is not there yet is tried again after ten seconds only.
	if _, err := c.Kubectl(ctx, c.manifest(), "apply", "-f", "-"); err != nil {
		return err
	}
	say("DNS service is deployed")
	if _, err := c.Kubectl(ctx, "", "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"); err != nil {
		return err
	}
	say("nodes are ready")
	if _, err := c.Kubectl(ctx, "", "--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s"); err != nil {
		return err
	}
	c.CameUp = true
	if err := c.save(); err != nil {
		return err
	}
	say("DNS service is up")
	return nil
}

func (c *Cluster) startMachines(network *network, l *net.TCPListener) error {
	listener, err := l.File()
	if err != nil {
		return err
	}
	defer listener.Close()
	init := c.Program("init")
	control, err := machine.Start(init, c.control(c.Cache), network.control, listener)
	if err != nil {
		return err
	}
	c.Control = *control
	if err := c.save(); err != nil {
		return err
	}
	for i := range c.Nodes {
		spec, err := c.worker(c.Cache, i)
		if err != nil {
			return err
		}
		started, err := machine.Start(init, spec, network.nodes[i], nil)
		if err != nil {
			return err
		}
		c.Nodes[i].Running = *started
		if err := c.save(); err != nil {
			return err
		}
	}
	return nil
}

// patience is how long parts of the cluster are waited for.
const patience = 90 * time.Second

// poll calls ready until it is, at most for patience.
func poll(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (n *Node) waitForContainerd(ctx context.Context) error {
	return poll(ctx, "containerd of "+n.Name, func(context.Context) error {
		conn, err := net.Dial("unix", n.ContainerdSocket())
		if err == nil {
			conn.Close()
		}
		return err
	})
}

func (c *Cluster) waitForAPI(ctx context.Context) error {
	client := &http.Client{
		Timeout: 2 * time.Second,
		// What it answers is of no account but for the status.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	defer client.CloseIdleConnections()
	return poll(ctx, "the API server", func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/readyz", c.Port), nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(r)
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return errors.New(answer.Status)
		}
		return nil
	})
}

// describeNode waits for kubelet to register, and says what no controller
// does here: which addresses its pods have.
func (c *Cluster) describeNode(ctx context.Context, n Node) error {
	patch := encode(object{"spec": object{"podCIDR": n.PodCIDRs[0].String(), "podCIDRs": n.PodCIDRs}})
	return poll(ctx, n.Name+" to register", func(ctx context.Context) error {
		_, err := c.Kubectl(ctx, "", "patch", "node", n.Name, "--patch", patch)
		return err
	})
}

//go:embed coredns.yaml
var coreDNSManifest string

// manifest is what every cluster has.
func (c *Cluster) manifest() string {
	forward := ""
	if c.DNSUpstream != "" {
		forward = "forward . " + c.DNSUpstream
	}
	policy := "SingleStack"
	if c.DualStack {
		policy = "PreferDualStack"
	}
	return strings.NewReplacer("$IMAGE", coreDNSImage, "$ADDRESS", dnsService, "$FORWARD", forward, "$FAMILIES", policy).Replace(coreDNSManifest)
}

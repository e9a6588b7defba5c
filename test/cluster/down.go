package cluster

import (
	"errors"
	"fmt"
	"os"

	"github.com/weirnet/weir/test/node"
)

// Down ends everything of the cluster of that name, DefaultName if empty, and
// removes what is left of it: namespaces, cgroups, and its directory with all
// logs. Where there is none it does nothing.
func Down(name string) error {
	config, err := Config{Name: name}.withDefaults()
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir(config.Name)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := lock(config.Name)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := Open(config.Name)
	if errors.Is(err, ErrDown) {
		return os.RemoveAll(dir(config.Name))
	}
	if err != nil {
		return err
	}
	if err := c.stop(); err != nil {
		return err
	}
	return os.RemoveAll(dir(config.Name))
}

// Down is Down of this cluster.
func (c *Cluster) Down() error { return Down(c.Name) }

// stop ends a cluster, and leaves its directory with nothing that matters.
func (c *Cluster) stop() error {
	var errs []error
	for _, n := range c.Nodes {
		if n.Pid != 0 {
			errs = append(errs, n.Stop())
		}
	}
	if c.Control.Pid != 0 {
		errs = append(errs, c.Control.Stop())
	}
	// Whoever else runs in the namespaces is no better off alive.
	errs = append(errs, node.RemoveNetwork(c.Name))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bring cluster %s down: %w", c.Name, err)
	}
	mounts, err := node.MountsUnder(dir(c.Name))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("bring cluster %s down: still mounted: %v", c.Name, mounts)
	}
	return os.Remove(c.path("cluster.json"))
}

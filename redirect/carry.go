package redirect

import (
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// carryTimeout is how long the kernel may take to let an interface carry packets.
const carryTimeout = 10 * time.Second

// untilCarrying waits until both ends of a wired proxy's pair carry packets. The
// kernel sees to that some time after both are up, and drops what comes before.
func untilCarrying(index int, ns *os.File) error {
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return fmt.Errorf("look into the proxy's namespace: %w", err)
	}
	defer inside.Close()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		near, err := netlink.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("find the interface to the proxy: %w", err)
		}
		far, err := inside.LinkByName(peerName)
		if err != nil {
			return fmt.Errorf("find %s of the proxy: %w", peerName, err)
		}
		a, b := near.Attrs().OperState, far.Attrs().OperState
		if a == netlink.OperUp && b == netlink.OperUp {
			return nil
		}
		if time.Since(start) > carryTimeout {
			return fmt.Errorf("the interface to the proxy is %v, the proxy's %v", a, b)
		}
	}
}

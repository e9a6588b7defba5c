package main

import (
	"fmt"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/policy"
)

// hostOptions are about policies for nodes.
type hostOptions struct {
	failsafe []string
	devices  string

	passes  []policy.Failsafe // failsafe, parsed
	pattern *regexp.Regexp    // devices, parsed; nil: as they are found
}

func (o *hostOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.failsafe, "host-failsafe", []string{"default"}, "what always passes, whatever policies for nodes say: any of kubelet, api-server, etcd, ssh, dhcp, dns, icmp and overlay, default for all of these, none, and more as in in:tcp/9100 or out:udp/5000-5010")
	f.StringVar(&o.devices, "host-devices", "", "enforce policies for nodes on the interfaces whose whole name this regular `expression` matches (default: those with a global address or a default route, and tunnels, but for pods')")
}

func (o *hostOptions) check() error {
	var err error
	if o.passes, err = policy.ParseFailsafe(o.failsafe); err != nil {
		return fmt.Errorf("host-failsafe: %w", err)
	}
	if o.devices == "" {
		return nil
	}
	if o.pattern, err = regexp.Compile("^(?:" + o.devices + ")$"); err != nil {
		return fmt.Errorf("host-devices: %w", err)
	}
	return nil
}

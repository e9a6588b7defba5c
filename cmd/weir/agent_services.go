package main

import (
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/endpoint"
)

// Values of --cgroup besides a directory.
const (
	cgroupAuto = "auto"
	cgroupNone = "none"
)

const cgroupUsage = "translate services at the sockets of processes below this `cgroup` (v2); auto: kubelet's for pods, or else all; none: leave services to kube-proxy"

// probeVerb makes this program the one that a probe of services runs.
const probeVerb = "probe-services"

// newProbeServicesCommand is `weir probe-services`, for the agent alone.
func newProbeServicesCommand() *cobra.Command {
	return &cobra.Command{
		Use:    probeVerb,
		Short:  "Tell whether this process's connections to services are translated",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return bpf.ProbeHere() },
	}
}

// agentServices are the services, with what of the kernel they have open.
type agentServices struct {
	*endpoint.Services
	kernel *bpf.Services // or nil
	pods   func() []endpoint.EndpointStatus
}

// services opens the kernel's side of services. Where it can't be had kube-proxy
// does their work, and the status says why: policy does not need it.
func (o *agentOptions) services(datapath *bpf.Datapath, log *slog.Logger) (*agentServices, error) {
	s := &agentServices{}
	options := endpoint.ServicesOptions{
		Probe: []string{"/proc/self/exe", probeVerb}, Log: log,
		Pods: func() []endpoint.EndpointStatus { return s.pods() },
	}
	if o.cgroup != cgroupAuto {
		options.Cgroup = o.cgroup
	}
	var err error
	if o.cgroup == cgroupNone {
		options.Why = "--cgroup " + cgroupNone
		if err := bpf.RemoveServices(o.pins.dir(o.state)); err != nil {
			return nil, err
		}
	} else if s.kernel, err = bpf.LoadServices(bpf.ServicesOptions{Pins: o.pins.dir(o.state), Logger: log}); err != nil {
		log.Error("services are left to kube-proxy", "error", err)
		options.Why = err.Error()
	} else {
		options.Kernel = s.kernel
		datapath.With(s.kernel)
	}
	if s.Services, err = endpoint.NewServices(options); err != nil {
		log.Error("services are left to kube-proxy", "error", err)
		options.Kernel, options.Why = nil, err.Error()
		s.Services, err = endpoint.NewServices(options)
	}
	return s, err
}

// close lets go of the kernel's side, which goes on.
func (s *agentServices) close(log *slog.Logger) {
	if s.kernel == nil {
		return
	}
	if err := s.kernel.Close(); err != nil {
		log.Warn("letting go of the kernel's tables of services", "error", err)
	}
}

// printServices says what becomes of services, first where it is kube-proxy alone
// that does it.
func printServices(w *errWriter, s endpoint.ServicesStatus) {
	const instead = "kube-proxy alone translates, and policy judges what pods send to a service's address by all of its backends"
	switch {
	case s.Aside > 0:
		w.printf("services HAVE STEPPED ASIDE at %s, %v after the tables were last said to be kept: %s\n", s.Cgroup, s.Aside.Round(time.Second), s.Why)
		w.printf("         %s\n", instead)
	case s.Why != "" && s.Cgroup == "":
		w.printf("services NOT translated: %s; left to kube-proxy\n         %s\n", s.Why, instead)
	case s.Why != "":
		w.printf("services NOT translated at %s: %s; left to kube-proxy\n         %s\n", s.Cgroup, s.Why, instead)
	default:
		w.printf("services %s at %s, %s, translated for pods in %s: %s",
			plural(s.Services, "service", "services"), plural(s.Frontends, "address with a port", "addresses with ports"),
			plural(s.Backends, "backend", "backends"), s.Cgroup, plural(int(s.Translated), "time", "times"))
		if s.Refused > 0 {
			w.printf(", %d refused without backend", s.Refused)
		}
		if s.Stale+s.Missing > 0 {
			w.printf(", %d left to kube-proxy", s.Stale+s.Missing)
		}
		if s.Destroyed > 0 {
			w.printf(", %s of backends that went ended", plural(int(s.Destroyed), "socket", "sockets"))
		}
		w.printf("\n")
	}
	if len(s.Outside) > 0 {
		w.printf("SERVICES ARE NOT TRANSLATED for processes outside of that cgroup, in pods %s\n", strings.Join(s.Outside, ", "))
	}
	if s.Error != "" && s.Error != s.Why {
		w.printf("services could not be brought up to date: %s\n", s.Error)
	}
}

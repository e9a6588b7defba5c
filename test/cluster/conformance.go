package cluster

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// Suite says what of Kubernetes' own tests is run, and how.
type Suite struct {
	// Focus and Skip are regular expressions over the names of specs.
	Focus, Skip string
	// Parallel is how many specs run at a time, one if 0.
	Parallel int
	// Timeout for all of it, two hours if 0.
	Timeout time.Duration
	// Report, if not empty, is a JUnit file to write.
	Report string
	// DryRun lists the specs and runs none.
	DryRun bool
}

// Conformance is the command that runs e2e.test, unchanged, within the
// cluster's network. The caller attaches its output and runs it.
func (c *Cluster) Conformance(ctx context.Context, s Suite) *exec.Cmd {
	args := []string{
		"netns", "exec", c.netns("control"), c.Program("ginkgo"),
		"--timeout=" + cmp.Or(s.Timeout, 2*time.Hour).String(),
		"--focus=" + s.Focus, "--skip=" + s.Skip,
		"--no-color", "--poll-progress-after=0", "--silence-skips",
	}
	if s.DryRun {
		args = append(args, "--dry-run", "-v")
	} else {
		args = append(args, fmt.Sprintf("--procs=%d", cmp.Or(s.Parallel, 1)))
	}
	if s.Report != "" {
		args = append(args, "--junit-report="+s.Report)
	}
	args = append(args, c.Program("e2e.test"), "--",
		"--provider=skeleton", "--kubeconfig="+c.KubeconfigInside(),
		fmt.Sprintf("--num-nodes=%d", c.NodeCount),
		"--node-os-distro=debian", "--dump-logs-on-failure=false",
		"--delete-namespace-on-failure=true", "--disable-log-dump=true",
	)
	cmd := exec.CommandContext(ctx, "ip", args...)
	// Asked to end, it says what it has so far and removes what it made.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	return cmd
}

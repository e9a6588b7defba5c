package main

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/weirnet/weir/redirect"
)

// replacedEnv in the environment says that the proxy of this process was
// replaced.
const replacedEnv = "WEIR_PROXY_REPLACED"

// stayed launches a proxy, and does not end when that is replaced: whoever runs
// this process would start it again, and the new proxy would replace its own
// successor. It launches another once none runs any more, which is so when the
// pod of the successor has gone instead of this one's.
//
// It executes this program again between the two: a place in the run directory
// is held until the process is another.
func (f *proxyFlags) stayed(ctx context.Context, launch func(context.Context) error) error {
	if os.Getenv(replacedEnv) != "" {
		if err := os.Unsetenv(replacedEnv); err != nil {
			return err
		}
		needed, err := redirect.UntilNeeded(ctx, f.state.dir())
		if err != nil || !needed {
			return err
		}
	}
	if err := launch(ctx); err != nil || ctx.Err() != nil || !f.stay {
		return err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("stay behind a successor: %w", err)
	}
	defer self.Close()
	err = syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", self.Fd()), os.Args, append(os.Environ(), replacedEnv+"=1"))
	return fmt.Errorf("stay behind a successor: %w", err)
}

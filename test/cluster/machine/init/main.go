// Command init is the first process of a machine (see package machine).
package main

import (
	"fmt"
	"os"

	"github.com/weirnet/weir/test/cluster/machine"
)

func main() {
	if err := machine.Init(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/weirnet/weir/test/node"
	"github.com/weirnet/weir/test/sockets"
)

// prefix begins the names of everything the stories make.
const prefix = "weirtest"

// program is the program under test, built once; "" where the stories are
// skipped. scratch is a directory that everybody may read, for as long as the
// tests run.
var program, scratch string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	sockets.Main()
	if name := os.Getenv(fetchVariable); name != "" {
		return fetchByGo(name)
	}
	if os.Geteuid() != 0 {
		return m.Run()
	}
	// Stories wait more than they work: unless somebody said how many, more of
	// them are told at a time than there are processors.
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)+1)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// The proxy runs as nobody and opens its own program again.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	scratch = dir
	if program = os.Getenv("WEIR_BIN"); program == "" {
		program = filepath.Join(dir, "weir")
		if out, err := exec.Command("go", "build", "-o", program, "../cmd/weir").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build weir: %v\n%s", err, out)
			return 1
		}
	}
	if err := node.RemoveStale(prefix); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// needRoot skips a story where it can't be told; in CI that is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("stories need root: network namespaces, eBPF")
	}
	t.Skip("stories need root: network namespaces, eBPF")
}

package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// What the cluster is made of. The versions of modules are those of the
// go.mod files in the directories of the same name.
const (
	kubernetesVersion = "v1.34.4"
	coreDNSImage      = "registry.k8s.io/coredns/coredns:v1.13.1"
	// What e2e.test and kubelet of this version ask for.
	agnhostImage = "registry.k8s.io/e2e-test-images/agnhost:2.56"
	pauseImage   = "registry.k8s.io/pause:3.10.1"
)

// AgnhostImage is the image of Kubernetes' own test programs, which every node
// has.
const AgnhostImage = agnhostImage

// kubernetesPackages are those programs of module kubernetes that are needed.
var kubernetesPackages = []string{
	"k8s.io/kubernetes/cmd/kube-apiserver",
	"k8s.io/kubernetes/cmd/kube-controller-manager",
	"k8s.io/kubernetes/cmd/kube-scheduler",
	"k8s.io/kubernetes/cmd/kubelet",
	"k8s.io/kubernetes/cmd/kube-proxy",
	"k8s.io/kubernetes/cmd/kubectl",
	"k8s.io/kubernetes/test/images/agnhost",
	"github.com/onsi/ginkgo/v2/ginkgo",
}

// DefaultCache is where built programs are kept: in the user's cache
// directory.
func DefaultCache() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(base, "weir", "kubernetes-"+kubernetesVersion), nil
}

// Build builds all programs and images of a cluster into the cache directory
// and says on progress what it does. What is there already is kept; what is
// built once takes ten minutes on two processors and some 5 GB of Go's cache.
// It must run within this module, with its source; it needs no privilege.
func Build(ctx context.Context, cache string, progress io.Writer) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	found, err := goCommand(ctx, "", "list", "-f", "{{.Dir}}", "github.com/weirnet/weir/test/cluster").Output()
	if err != nil {
		return fmt.Errorf("find the source of test/cluster: %w", err)
	}
	b := &builder{cache: cache, source: strings.TrimSpace(string(found)), progress: progress}
	var kubernetes []target
	for _, p := range kubernetesPackages {
		kubernetes = append(kubernetes, target{"build", p, filepath.Base(p)})
	}
	kubernetes = append(kubernetes, target{"test", "k8s.io/kubernetes/test/e2e", "e2e.test"})
	if err := b.module(ctx, "kubernetes", kubernetes); err != nil {
		return err
	}
	if err := b.module(ctx, "coredns", []target{{"build", ".", "coredns"}}); err != nil {
		return err
	}
	if err := b.module(ctx, "pause", []target{{"build", ".", "pause"}}); err != nil {
		return err
	}
	// It changes with this module, and is small.
	if err := b.build(ctx, b.source, "-s -w", target{"build", "./machine/init", "init"}); err != nil {
		return err
	}
	return b.images()
}

type target struct{ verb, pkg, name string }

type builder struct {
	cache, source string
	progress      io.Writer
}

// module builds programs in a directory beside this package, unless a stamp
// says that the same was built of the same files before.
func (b *builder) module(ctx context.Context, name string, targets []target) error {
	dir := filepath.Join(b.source, name)
	flags := "-s -w"
	if name == "kubernetes" {
		flags += versionFlags()
	}
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, flags)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("read the source of %s: %w", name, err)
		}
		h.Write(content)
	}
	want := hex.EncodeToString(h.Sum(nil))
	for i, t := range targets {
		stamp := filepath.Join(b.cache, "."+t.name+".built")
		have, err := os.ReadFile(stamp)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, err := os.Stat(filepath.Join(b.cache, t.name)); err == nil && string(have) == want {
			continue
		}
		began := time.Now()
		fmt.Fprintf(b.progress, "build %-24s %d of %d", t.name, i+1, len(targets))
		if err := b.build(ctx, dir, flags, t); err != nil {
			fmt.Fprintln(b.progress)
			return err
		}
		fmt.Fprintf(b.progress, " %4.0fs\n", time.Since(began).Seconds())
		if err := os.WriteFile(stamp, []byte(want), 0o644); err != nil {
			return fmt.Errorf("stamp %s: %w", t.name, err)
		}
	}
	return nil
}

func (b *builder) build(ctx context.Context, dir, ldflags string, t target) error {
	args := []string{t.verb, "-trimpath", "-p", "2", "-ldflags", ldflags, "-o", filepath.Join(b.cache, t.name)}
	if t.verb == "test" {
		args = append(args, "-c")
	}
	cmd := goCommand(ctx, dir, append(args, t.pkg)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", t.name, err, out.String())
	}
	return nil
}

// goCommand is a go command that gives way to others and links nothing of C.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "10", "go"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd
}

// versionFlags tell programs what they are, as the project's own build does.
func versionFlags() string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	var b strings.Builder
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		fmt.Fprintf(&b, " -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s", pkg, kubernetesVersion, pkg, major, pkg, minor)
	}
	return b.String()
}

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

// cacheEnv names the directory of built programs, where it is not the user's.
const cacheEnv = "WEIR_KUBERNETES"

// AgnhostImage is the image of Kubernetes' own test programs, which every node
// has.
const AgnhostImage = agnhostImage

// kubernetesPackages are those programs of module kubernetes that are needed.
var kubernetesPackages = []string{
	"k8s.io/kubernetes/cmd/kube-controller-manager",
	"k8s.io/kubernetes/cmd/kube-scheduler",
	"k8s.io/kubernetes/cmd/kubelet",
	"k8s.io/kubernetes/cmd/kube-proxy",
	"k8s.io/kubernetes/test/images/agnhost",
}

// etcd is younger than Debian's, whose API server has no streams of lists.
var etcd = target{"build", "go.etcd.io/etcd/server/v3", "etcd"}

// DefaultCache is where built programs are kept: WEIR_KUBERNETES, or in the
// user's cache directory.
func DefaultCache() (string, error) {
	if dir := os.Getenv(cacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(base, "weir", "kubernetes-"+kubernetesVersion), nil
}

// Build builds the programs and images of a cluster into the cache directory
// and says on progress what it does. What is there already is kept; what is
// built once takes eight minutes on two processors and some 5 GB of Go's cache.
// It must run within this module, with its source; it needs no privilege.
func Build(ctx context.Context, cache string, progress io.Writer) error {
	b, err := newBuilder(ctx, cache, progress)
	if err != nil {
		return err
	}
	if err := b.server(ctx); err != nil {
		return err
	}
	if err := b.module(ctx, "kubernetes", targetsOf(kubernetesPackages...)); err != nil {
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

// BuildServer builds an API server, its etcd and kubectl only: what package
// test/apiserver has.
func BuildServer(ctx context.Context, cache string, progress io.Writer) error {
	b, err := newBuilder(ctx, cache, progress)
	if err != nil {
		return err
	}
	return b.server(ctx)
}

// BuildSuite builds what Conformance needs beside a cluster.
func BuildSuite(ctx context.Context, cache string, progress io.Writer) error {
	b, err := newBuilder(ctx, cache, progress)
	if err != nil {
		return err
	}
	return b.module(ctx, "kubernetes", append(targetsOf("github.com/onsi/ginkgo/v2/ginkgo"),
		target{"test", "k8s.io/kubernetes/test/e2e", "e2e.test"}))
}

type target struct{ verb, pkg, name string }

type builder struct {
	cache, source string
	progress      io.Writer
}

func newBuilder(ctx context.Context, cache string, progress io.Writer) (*builder, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	found, err := goCommand(ctx, "", "list", "-f", "{{.Dir}}", "github.com/weirnet/weir/test/cluster").Output()
	if err != nil {
		return nil, fmt.Errorf("find the source of test/cluster: %w", err)
	}
	return &builder{cache: cache, source: strings.TrimSpace(string(found)), progress: progress}, nil
}

// targetsOf are programs that are named as their packages.
func targetsOf(packages ...string) (all []target) {
	for _, p := range packages {
		all = append(all, target{"build", p, filepath.Base(p)})
	}
	return all
}

func (b *builder) server(ctx context.Context) error {
	if err := b.module(ctx, "etcd", []target{etcd}); err != nil {
		return err
	}
	return b.module(ctx, "kubernetes", targetsOf("k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kubectl"))
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
	for _, t := range targets {
		stamp := filepath.Join(b.cache, "."+t.name+".built")
		have, err := os.ReadFile(stamp)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, err := os.Stat(filepath.Join(b.cache, t.name)); err == nil && string(have) == want {
			continue
		}
		fmt.Fprintf(b.progress, "build %-24s", t.name)
		took, err := b.shown(func() error { return b.build(ctx, dir, flags, t) })
		if err != nil {
			fmt.Fprintln(b.progress)
			return err
		}
		fmt.Fprintf(b.progress, " %4.0fs\n", took.Seconds())
		if err := os.WriteFile(stamp, []byte(want), 0o644); err != nil {
			return fmt.Errorf("stamp %s: %w", t.name, err)
		}
	}
	return nil
}

// shown does something that takes minutes, with a dot every ten seconds.
func (b *builder) shown(do func() error) (time.Duration, error) {
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return time.Since(began), err
		case <-tick.C:
			fmt.Fprint(b.progress, ".")
		}
	}
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

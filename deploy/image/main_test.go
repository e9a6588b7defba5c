package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestSameSourceSameImage: a build from another directory, at another time, is
// the same image, for both architectures; and what else it is made of shows.
func TestSameSourceSameImage(t *testing.T) {
	if testing.Short() {
		t.Skip("this builds weir several times")
	}
	dir := t.TempDir()
	elsewhere := filepath.Join(dir, "elsewhere")
	if out, err := exec.Command("git", "clone", "--quiet", "--shared", "../..", elsewhere).CombinedOutput(); err != nil {
		t.Skipf("not in a git clone: %v: %s", err, out)
	}
	// Of one commit, or what is being worked on here would count.
	here := filepath.Join(dir, "here")
	if out, err := exec.Command("git", "clone", "--quiet", "--shared", "../..", here).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	digests := map[string]bool{}
	for _, arch := range []string{"amd64", "arm64"} {
		var archives [2][]byte
		var digest string
		for i, from := range []string{here, elsewhere} {
			binary := filepath.Join(dir, arch+"-"+filepath.Base(from))
			build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v1.2.3", "-o", binary, "./cmd/weir")
			build.Dir, build.Env = from, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build for %s: %v: %s", arch, err, out)
			}
			out := binary + ".tar"
			if err := pack(source{binary, arch, "v1.2.3", ""}, "weirnet/weir:v1.2.3", out); err != nil {
				t.Fatal(err)
			}
			var err error
			if archives[i], err = os.ReadFile(out); err != nil {
				t.Fatal(err)
			}
			img, err := tarball.ImageFromPath(out, nil)
			if err != nil {
				t.Fatal(err)
			}
			hash, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			config, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.Architecture != arch || config.Config.Labels["org.opencontainers.image.version"] != "v1.2.3" {
				t.Errorf("%s: the image says %s, %v", arch, config.Architecture, config.Config.Labels)
			}
			digest = hash.String()
		}
		if !bytes.Equal(archives[0], archives[1]) {
			t.Errorf("%s: two builds give two images", arch)
		}
		digests[digest] = true
	}
	if len(digests) != 2 {
		t.Error("both architectures have the same digest")
	}
	other := source{filepath.Join(dir, "amd64-here"), "amd64", "v1.2.4", ""}
	img, err := other.image()
	if err != nil {
		t.Fatal(err)
	}
	if hash, err := img.Digest(); err != nil || digests[hash.String()] {
		t.Errorf("another version has the same digest (%v)", err)
	}
}

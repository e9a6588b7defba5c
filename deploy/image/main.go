// Command image packs the weir binary into a container image without Docker:
// one layer, FROM scratch, as a docker-archive that `ctr images import` and
// `docker load` read. The same binary always gives the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	binary := flag.String("binary", "bin/weir", "static binary to pack")
	arch := flag.String("arch", "amd64", "architecture it was built for")
	tag := flag.String("tag", "weir:dev", "name of the image")
	out := flag.String("o", "dist/weir.tar", "archive to write")
	flag.Parse()
	if err := pack(*binary, *arch, *tag, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func pack(binary, arch, tag, out string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return fmt.Errorf("image name: %w", err)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("read the binary: %w", err)
	}
	archive, err := layer(content)
	if err != nil {
		return fmt.Errorf("pack %s: %w", binary, err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive)), nil
	})
	if err != nil {
		return fmt.Errorf("make a layer of %s: %w", binary, err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return fmt.Errorf("append the layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	// The epoch as creation time: when it was packed is no part of what it is.
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: arch,
		OS:           "linux",
		Created:      v1.Time{Time: time.Unix(0, 0).UTC()},
		Config:       v1.Config{Entrypoint: []string{"/weir"}, Env: []string{"PATH=/"}},
		RootFS:       config.RootFS,
	})
	if err != nil {
		return fmt.Errorf("set the configuration: %w", err)
	}
	// A half-written archive never stands under the final name.
	if err := tarball.WriteToFile(out+".part", ref, img); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	if err := os.Rename(out+".part", out); err != nil {
		return fmt.Errorf("name the archive: %w", err)
	}
	return nil
}

func layer(binary []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "run/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeReg, Name: "weir", Mode: 0o755, Size: int64(len(binary))},
	} {
		h.ModTime = time.Unix(0, 0)
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(binary); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}

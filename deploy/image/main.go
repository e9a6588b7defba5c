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
	tag := flag.String("tag", "weirnet/weir:dev", "name of the image")
	version := flag.String("version", "dev", "version of the binary, for the image's labels")
	revision := flag.String("revision", "", "commit it was built from, likewise")
	out := flag.String("o", "dist/weir.tar", "archive to write")
	flag.Parse()
	if err := pack(source{*binary, *arch, *version, *revision}, *tag, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// source is what an image is made of: the same gives the same bytes.
type source struct{ binary, arch, version, revision string }

func pack(from source, tag, out string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return fmt.Errorf("image name: %w", err)
	}
	img, err := from.image()
	if err != nil {
		return err
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

func (s source) image() (v1.Image, error) {
	content, err := os.ReadFile(s.binary)
	if err != nil {
		return nil, fmt.Errorf("read the binary: %w", err)
	}
	archive, err := layer(content)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", s.binary, err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive)), nil
	})
	if err != nil {
		return nil, fmt.Errorf("make a layer of %s: %w", s.binary, err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, fmt.Errorf("append the layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	// The epoch as creation time: when it was packed is no part of what it is.
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: s.arch,
		OS:           "linux",
		Created:      v1.Time{Time: time.Unix(0, 0).UTC()},
		Config:       v1.Config{Entrypoint: []string{"/weir"}, Env: []string{"PATH=/"}, Labels: s.labels()},
		RootFS:       config.RootFS,
	})
	if err != nil {
		return nil, fmt.Errorf("set the configuration: %w", err)
	}
	return img, nil
}

// labels are the annotations that the OCI image specification names. An archive
// has no place for a manifest's annotations; registries and runtimes read these.
func (s source) labels() map[string]string {
	all := map[string]string{
		"org.opencontainers.image.title":       "weir",
		"org.opencontainers.image.description": "NetworkPolicy and CiliumNetworkPolicy on any CNI",
		"org.opencontainers.image.url":         "https://github.com/weirnet/weir",
		"org.opencontainers.image.source":      "https://github.com/weirnet/weir",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     s.version,
	}
	if s.revision != "" {
		all["org.opencontainers.image.revision"] = s.revision
	}
	return all
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

package cluster

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// imagesArchive holds every image that the cluster itself needs.
const imagesArchive = "images.tar"

// image is one static binary with nothing around it.
type image struct {
	tag, program string
	link         string // another name of the program
	args         []string
}

// images packs the built programs, unless the archive is newer than they are.
func (b *builder) images() error {
	all := []image{
		{tag: pauseImage, program: "pause"},
		// Tests of entry points use the second name.
		{tag: agnhostImage, program: "agnhost", link: "agnhost-2", args: []string{"pause"}},
		{tag: coreDNSImage, program: "coredns"},
	}
	out := filepath.Join(b.cache, imagesArchive)
	packed, err := os.Stat(out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	current := err == nil
	for _, i := range all {
		built, err := os.Stat(filepath.Join(b.cache, i.program))
		if err != nil {
			return fmt.Errorf("pack images: %w", err)
		}
		current = current && packed.ModTime().After(built.ModTime())
	}
	if current {
		return nil
	}
	fmt.Fprintln(b.progress, "pack the images")
	images := map[name.Tag]v1.Image{}
	for _, i := range all {
		tag, err := name.NewTag(i.tag)
		if err != nil {
			return fmt.Errorf("image name: %w", err)
		}
		if images[tag], err = b.image(i); err != nil {
			return fmt.Errorf("pack %s: %w", i.tag, err)
		}
	}
	if err := tarball.MultiWriteToFile(out+".part", images); err != nil {
		return fmt.Errorf("write the images: %w", err)
	}
	return os.Rename(out+".part", out)
}

func (b *builder) image(i image) (v1.Image, error) {
	binary, err := os.ReadFile(filepath.Join(b.cache, i.program))
	if err != nil {
		return nil, err
	}
	archive, err := layer(i, binary)
	if err != nil {
		return nil, err
	}
	// It is unpacked at each start: nothing is gained by compressing it.
	l := static.NewLayer(archive, types.DockerUncompressedLayer)
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{"/" + i.program}, Cmd: i.args, Env: []string{"PATH=/"}, WorkingDir: "/"}
	return mutate.ConfigFile(img, config)
}

func layer(i image, binary []byte) ([]byte, error) {
	headers := []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeReg, Name: i.program, Mode: 0o755, Size: int64(len(binary))},
	}
	if i.link != "" {
		headers = append(headers, &tar.Header{Typeflag: tar.TypeSymlink, Name: i.link, Linkname: i.program})
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		h.ModTime = time.Unix(0, 0)
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(binary); err != nil {
				return nil, err
			}
		}
	}
	return out.Bytes(), w.Close()
}

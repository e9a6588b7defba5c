package redirect

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
)

// origin is what a proxy knows of where it comes from.
type origin struct {
	build   string
	managed bool
}

// Environment variables that carry it from the launcher through Confine.
const (
	buildEnv   = "WEIR_BUILD"
	managedEnv = "WEIR_MANAGED"
)

func (o origin) environ() []string {
	env := []string{buildEnv + "=" + o.build}
	if o.managed {
		env = append(env, managedEnv+"=1")
	}
	return env
}

func originOf(getenv func(string) string) origin {
	return origin{build: getenv(buildEnv), managed: getenv(managedEnv) != ""}
}

// buildIDSection holds what the Go linker says of a binary: a hash of its
// contents is part of it.
const buildIDSection = ".note.go.buildid"

// BuildOf tells a binary from others: a few letters that are equal for equal
// ones, and as a rule for those only.
func BuildOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("tell which binary this is: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if id := buildID(f); len(id) > 0 {
		_, _ = sum.Write(id) // a hash takes everything
	} else if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("tell which binary this is: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// buildID is the contents of the section, if there is one.
func buildID(f io.ReaderAt) []byte {
	binary, err := elf.NewFile(f)
	if err != nil {
		return nil
	}
	section := binary.Section(buildIDSection)
	if section == nil {
		return nil
	}
	id, err := section.Data()
	if err != nil {
		return nil
	}
	return id
}

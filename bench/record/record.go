// Package record has what the reports of all benchmarks share: where a run took
// place, and how it is kept.
package record

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Run is when and where a run took place.
type Run struct {
	Date   time.Time `json:"date"` // UTC, in seconds
	Commit string    `json:"commit"`
	Kernel string    `json:"kernel"`
	CPU    string    `json:"cpu"` // model; "unknown" where /proc/cpuinfo names none
	CPUs   int       `json:"cpus"`
}

// Here is a run of a commit that begins now, on this machine.
func Here(commit string) Run {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // only fails for a bad pointer
	r := Run{Date: time.Now().UTC().Truncate(time.Second), Commit: commit, Kernel: unix.ByteSliceToString(uts.Release[:])}
	r.CPU, r.CPUs = cpuModel()
	return r
}

func cpuModel() (string, int) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown", 0
	}
	defer f.Close()
	model, n := "unknown", 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), ":")
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "processor":
			n++
		}
	}
	return model, n
}

// Keep writes a report below dir, named by the run's time and the suffix, as JSON
// and as the text that print makes of it; one of both goes to standard output.
func (r Run) Keep(dir, suffix string, report any, print func(io.Writer) error, asJSON bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	j, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := print(&text); err != nil {
		return err
	}
	name := filepath.Join(dir, r.Date.Format("20060102T150405Z")+suffix)
	if err := os.WriteFile(name+".json", append(j, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(name+".md", []byte(text.String()), 0o644); err != nil {
		return err
	}
	if asJSON {
		fmt.Println(string(j))
		return nil
	}
	fmt.Print(text.String())
	return nil
}

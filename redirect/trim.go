package redirect

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// trim lets go of those pages of this binary that only its start has touched:
// the initialisation of what the agent needs, the client of the API server above
// all, which the proxy never calls. What is used again is mapped again from the
// page cache. Where /proc can't be read nothing is trimmed.
func trim() error {
	return eachText(func(from, to uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("let go of unused pages: %w", errno)
		}
		return nil
	})
}

// eachText calls f with each mapping of this binary that never was written to.
func eachText(f func(from, to uintptr) error) error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	var from, to uintptr
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		line := lines.Text()
		var first, end uintptr
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %4s", &first, &end, &mode); n == 3 {
			if from, to = 0, 0; mode[1] == '-' && strings.HasSuffix(line, " "+exe) {
				from, to = first, end
			}
			continue
		}
		if from != 0 && strings.HasPrefix(line, "Anonymous:") && strings.HasSuffix(line, " 0 kB") {
			if err := f(from, to); err != nil {
				return err
			}
		}
	}
	return nil
}

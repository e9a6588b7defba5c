package redirect

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTrim: pages of the binary go, and what is used goes on.
func TestTrim(t *testing.T) {
	if err := eachText(func(from, to uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_POPULATE_READ); errno != 0 {
			return errno
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	before := resident(t)
	if err := trim(); err != nil {
		t.Fatal(err)
	}
	if now := resident(t); now > before/2 {
		t.Errorf("%d kB of files are mapped, %d before", now, before)
	}
}

// resident tells how much of files this process has in memory, in kB.
func resident(t *testing.T) (kB int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`RssFile:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no RssFile in %s", text)
	}
	if _, err := fmt.Sscan(string(m[1]), &kB); err != nil {
		t.Fatal(err)
	}
	return kB
}

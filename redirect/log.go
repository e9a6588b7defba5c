package redirect

import (
	"fmt"
	"os"
	"sync"
)

// LogFile is a log of bounded size: when the file is full it becomes
// "PATH.1", whose predecessor is gone. Safe for concurrent use.
type LogFile struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenLog opens path for appending. The file and its predecessor together
// never take more than 2*max bytes.
func OpenLog(path string, max int64) (*LogFile, error) {
	l := &LogFile{path: path, max: max}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *LogFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Write appends b, all of it to one file. What can't be written is given up:
// a full disk must not stop the proxy's supervisor.
func (l *LogFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	given := len(b)
	if given > int(l.max) {
		b = b[:l.max]
	}
	if l.file != nil && l.size+int64(len(b)) > l.max {
		l.file.Close()
		l.file = nil
		_ = os.Rename(l.path, l.path+".1")
	}
	if l.file == nil && l.open() != nil {
		return given, nil
	}
	n, _ := l.file.Write(b)
	l.size += int64(n)
	return given, nil
}

// Close closes the file.
func (l *LogFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

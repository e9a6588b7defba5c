package kube

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// wanted tells whether a file of that name holds objects: YAML or JSON, and
// none of the names that editors and atomic writers use on the way.
func wanted(name string) bool {
	base := filepath.Base(name)
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "#") {
		return false
	}
	switch filepath.Ext(base) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// listing is the tree below a directory.
type listing struct {
	files map[string]signature // by path, the directory's name in front
	dirs  []string             // where something may change
}

// signature tells whether a file may have changed since it was read.
type signature struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// settled is false while a change within the clock's resolution could have
// left the signature as it is.
func (s signature) settled(now time.Time) bool {
	return now.Sub(time.Unix(s.ctime.Unix())) > 100*time.Millisecond
}

func sign(path string) (sig signature, regular bool, err error) {
	var st unix.Stat_t // of what a symbolic link points to
	if err := unix.Stat(path, &st); err != nil {
		return signature{}, false, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return signatureOf(&st), st.Mode&unix.S_IFMT == unix.S_IFREG, nil
}

func signatureOf(st *unix.Stat_t) signature {
	return signature{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

// list walks root. Names with a leading dot are skipped, directories among
// them (so the ..data of a mounted ConfigMap is only seen through the links
// that point into it); links to directories are not followed.
func list(root string) (listing, error) {
	l := listing{files: map[string]signature{}}
	err := filepath.WalkDir(root+string(filepath.Separator), func(path string, d fs.DirEntry, err error) error {
		path = filepath.Clean(path)
		if err != nil {
			if path != filepath.Clean(root) && errors.Is(err, fs.ErrNotExist) {
				return nil // gone since its directory was read
			}
			return err
		}
		if d.IsDir() {
			if path != filepath.Clean(root) && strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			l.dirs = append(l.dirs, path)
			return nil
		}
		if !wanted(path) {
			return nil
		}
		sig, regular, err := sign(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case regular:
			l.files[path] = sig
		}
		if d.Type()&fs.ModeSymlink != 0 {
			// What it points to may change without an event in here.
			if target, err := filepath.EvalSymlinks(path); err == nil {
				l.dirs = append(l.dirs, filepath.Dir(target))
			}
		}
		return nil
	})
	if err != nil {
		return listing{}, fmt.Errorf("read directory of objects: %w", err)
	}
	return l, nil
}

// errWriting says that somebody has the file open for writing.
var errWriting = errors.New("is being written")

// readStable reads a file that nobody writes at the moment. A lease is what
// tells: the kernel grants one for reading only while no one has the file
// open for writing. Where there are no leases the file is read as it is.
func readStable(path string) ([]byte, signature, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, signature{}, err
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	switch {
	case err == nil:
		defer unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK) //nolint:errcheck // closing ends it as well
	case errors.Is(err, unix.EAGAIN):
		return nil, signature{}, errWriting
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, signature{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	text, err := io.ReadAll(f)
	return text, signatureOf(&st), err
}

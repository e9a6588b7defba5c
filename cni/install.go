package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Options of the plugin's entry in a configuration.
type Options struct {
	State     string
	Timeout   string
	OnTimeout string
	NoAgent   string
}

// savedSuffix is added to the name of a configuration of one plugin while a list
// stands in its place; it makes the runtime pass over it.
const savedSuffix = ".before-weir"

// ErrNoConfig says that a directory has no configuration to be added to: the
// plugin that makes the interfaces is not installed yet.
var ErrNoConfig = errors.New("no CNI configuration")

// Install appends the plugin to the configuration that the runtime takes from
// confDir, which is the first by name, and puts the program into binDir under the
// plugin's name. Files appear and change at once, never in part; where all is as
// it should be nothing is written, and changed is false.
func Install(confDir, binDir, program string, o Options) (changed bool, err error) {
	entry := encode(map[string]string{"type": Type, "state": o.State, "timeout": o.Timeout, "onTimeout": o.OnTimeout, "noAgent": o.NoAgent})
	if _, err := readConfig(entry); err != nil {
		return false, err
	}
	path, err := first(confDir)
	if err != nil {
		return false, err
	}
	// The program first: a configuration that names none lets no pod start.
	if changed, err = place(program, filepath.Join(binDir, Type)); err != nil {
		return false, fmt.Errorf("install the CNI plugin: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return changed, fmt.Errorf("read the CNI configuration: %w", err)
	}
	list, err := asList(text)
	if err != nil {
		return changed, fmt.Errorf("CNI configuration %s: %w", path, err)
	}
	old := slices.Clone(list.plugins)
	list.without(Type)
	list.plugins = append(list.plugins, json.RawMessage(strings.TrimSpace(string(entry))))
	to := path
	if list.single {
		to = strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
	} else if slices.EqualFunc(old, list.plugins, sameJSON) {
		return changed, nil
	}
	if err := write(to, list.text()); err != nil {
		return changed, err
	}
	if to != path {
		if err := os.Rename(path, path+savedSuffix); err != nil {
			return true, fmt.Errorf("put a list in the place of %s: %w", path, err)
		}
	}
	return true, nil
}

// Uninstall takes the plugin out of every configuration in confDir, and its
// program from binDir. What is not there is no error.
func Uninstall(confDir, binDir string) error {
	names, err := configs(confDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, remove(filepath.Join(confDir, name)))
	}
	if err := errors.Join(errs...); err != nil {
		return err // a configuration that names the program may be left
	}
	if err := os.Remove(filepath.Join(binDir, Type)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the CNI plugin: %w", err)
	}
	return nil
}

func remove(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the CNI configuration: %w", err)
	}
	list, err := asList(text)
	if err != nil || !list.without(Type) {
		return nil //nolint:nilerr // what can't be read has no entry that the runtime would follow
	}
	base := strings.TrimSuffix(path, filepath.Ext(path))
	for _, ext := range []string{".conf", ".json"} {
		if err := os.Rename(base+ext+savedSuffix, base+ext); err == nil {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove the CNI configuration: %w", err)
			}
			return nil
		}
	}
	return write(path, list.text())
}

// configs lists the configurations of a directory as runtimes do, in their order.
func configs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("look for CNI configurations: %w", err)
	}
	var out []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if !e.IsDir() {
				out = append(out, e.Name())
			}
		}
	}
	return out, nil
}

func first(dir string) (string, error) {
	names, err := configs(dir)
	if err != nil {
		return "", err
	}
	if len(names) == 0 {
		return "", fmt.Errorf("%w in %s", ErrNoConfig, dir)
	}
	return filepath.Join(dir, names[0]), nil
}

// list is a configuration of several plugins; what is not understood of it stays.
type list struct {
	fields  map[string]json.RawMessage
	plugins []json.RawMessage
	single  bool // it was a configuration of one plugin
}

// asList reads a configuration. One of a single plugin becomes a list of it.
func asList(text []byte) (*list, error) {
	l := &list{}
	if err := json.Unmarshal(text, &l.fields); err != nil {
		return nil, err
	}
	raw, ok := l.fields["plugins"]
	if ok {
		return l, json.Unmarshal(raw, &l.plugins)
	}
	if typeOf(text) == "" {
		return nil, errors.New("it has neither plugins nor a type")
	}
	l.single, l.plugins = true, []json.RawMessage{text}
	for field := range l.fields {
		if field != "name" && field != "cniVersion" {
			delete(l.fields, field)
		}
	}
	return l, nil
}

func (l *list) without(kind string) (found bool) {
	before := len(l.plugins)
	l.plugins = slices.DeleteFunc(l.plugins, func(p json.RawMessage) bool { return typeOf(p) == kind })
	return len(l.plugins) < before
}

func (l *list) text() []byte {
	fields := map[string]any{}
	for k, v := range l.fields {
		fields[k] = v
	}
	fields["plugins"] = l.plugins
	out, err := json.MarshalIndent(fields, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("encode a CNI configuration: %v", err)) // it was decoded
	}
	return append(out, '\n')
}

func typeOf(plugin []byte) string {
	var p struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(plugin, &p) != nil {
		return ""
	}
	return p.Type
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return string(encode(x)) == string(encode(y))
}

// write replaces a file at once.
func write(path string, text []byte) error {
	err := replace(path, 0o600, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
	if err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	return nil
}

// place copies a program; one with the same bytes stays.
func place(program, to string) (changed bool, err error) {
	if sameFile(program, to) {
		return false, nil
	}
	from, err := os.Open(program)
	if err != nil {
		return false, err
	}
	defer from.Close()
	return true, replace(to, 0o755, func(f *os.File) error {
		_, err := io.Copy(f, from)
		return err
	})
}

func sameFile(a, b string) bool {
	x, err := os.Open(a)
	if err != nil {
		return false
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		return false
	}
	defer y.Close()
	p, q := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, errX := io.ReadFull(x, p)
		m, errY := io.ReadFull(y, q)
		if n != m || string(p[:n]) != string(q[:m]) {
			return false
		}
		if errX != nil || errY != nil {
			return (errX == io.EOF || errX == io.ErrUnexpectedEOF) && errX == errY
		}
	}
}

func replace(path string, mode fs.FileMode, fill func(*os.File) error) error {
	// The runtime passes over names that end like this.
	f, err := os.CreateTemp(filepath.Dir(path), ".weir-*.new")
	if err != nil {
		return err
	}
	err = errors.Join(fill(f), f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

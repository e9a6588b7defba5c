package api

import (
	"cmp"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// decoder puts a document's values into Go types by their JSON names. It takes
// nothing it does not know and nothing of another type, and goes on after an
// error, so that all of them are found.
type decoder struct {
	source Position
	// lines is the line of every path that was written.
	lines map[string]int
	errs  []*Error
	// nulls: a null counts as not written, as the Kubernetes API has it. Else
	// it is refused: `fromEndpoints:` with its items forgotten is null, and
	// would then mean everyone.
	nulls bool
	// nullPaths are the nulls that were let pass.
	nullPaths []string

	members map[reflect.Type][]jsonField
}

// jsonField is a field of a struct under its JSON name.
type jsonField struct {
	name  string
	index []int
}

func newDecoder(source Position) *decoder {
	return &decoder{source: source, lines: map[string]int{}, members: map[reflect.Type][]jsonField{}}
}

// errorf records an error at a path: at its line, or that of the nearest path
// above it that was written.
func (d *decoder) errorf(path, format string, args ...any) {
	d.errs = append(d.errs, d.newError(path, format, args...))
}

func (d *decoder) newError(path, format string, args ...any) *Error {
	return &Error{File: d.source.File, Document: d.source.Document, Line: d.lineOf(path), Field: path, Message: fmt.Sprintf(format, args...)}
}

func (d *decoder) lineOf(path string) int {
	for p := path; p != ""; {
		if line, ok := d.lines[p]; ok {
			return line
		}
		p = p[:max(strings.LastIndexAny(p, ".["), 0)]
	}
	return d.source.Line
}

// has tells whether the path was written, whatever its value.
func (d *decoder) has(path string) bool { _, ok := d.lines[path]; return ok }

// failed tells whether there is an error at the path or below it.
func (d *decoder) failed(path string) bool {
	for _, e := range d.errs {
		if under(e.Field, path) {
			return true
		}
	}
	return false
}

func (d *decoder) faults(n *node, path string) {
	for _, f := range n.faults {
		p := join(path, f.field)
		d.errs = append(d.errs, &Error{File: d.source.File, Document: d.source.Document, Line: f.line, Field: p, Message: f.message})
	}
}

// value decodes n into v, which is settable.
func (d *decoder) value(n *node, v reflect.Value, path string) {
	d.lines[path] = n.line
	d.faults(n, path)
	if n.kind == nullNode {
		switch {
		case d.nulls && !strings.HasSuffix(path, "]"):
			d.nullPaths = append(d.nullPaths, path)
		case !d.nulls && harmlessNull(path):
			delete(d.lines, path) // as if it were not written
		default:
			d.errorf(path, "must not be null")
		}
		return
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), path)
		v.Set(p)
		return
	}
	if p, ok := v.Addr().Interface().(*intstr.IntOrString); ok {
		d.intOrString(n, p, path)
		return
	}
	switch v.Kind() {
	case reflect.String:
		if d.expect(n, stringNode, path) {
			v.SetString(n.text)
		}
	case reflect.Bool:
		if d.expect(n, boolNode, path) {
			v.SetBool(n.text == "true")
		}
	case reflect.Int32:
		if text, ok := d.integer(n, path); ok {
			i, err := strconv.ParseInt(text, 10, 32)
			if err != nil {
				d.errorf(path, "%s is out of range", n.text)
				return
			}
			v.SetInt(i)
		}
	case reflect.Uint8:
		if text, ok := d.integer(n, path); ok {
			u, err := strconv.ParseUint(text, 10, 8)
			if err != nil {
				d.errorf(path, "%s is out of range", n.text)
				return
			}
			v.SetUint(u)
		}
	case reflect.Slice:
		if !d.expect(n, listNode, path) {
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
		for i, item := range n.items {
			d.value(item, s.Index(i), index(path, i))
		}
		v.Set(s)
	case reflect.Map:
		d.stringMap(n, v, path)
	case reflect.Struct:
		d.object(n, v, path)
	default:
		d.errorf(path, "is of a type that can't be decoded: %s", v.Type())
	}
}

// harmlessNull tells of fields whose null can't select or allow more than what
// may have been meant.
func harmlessNull(path string) bool {
	switch path[strings.LastIndexByte(path, '.')+1:] {
	case "description", "log", "labels", "enableDefaultDeny", "values", "endPort", "family":
		return true
	}
	return strings.Contains(path, ".enableDefaultDeny.")
}

// integer returns the digits of a whole number: 90 or, as YAML and JSON may
// write it, 90.0.
func (d *decoder) integer(n *node, path string) (string, bool) {
	if n.kind == floatNode {
		if f, err := strconv.ParseFloat(n.text, 64); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return strconv.FormatInt(int64(f), 10), true
		}
	}
	return n.text, d.expect(n, intNode, path)
}

// expect tells whether the value is of a kind, and records if it is not.
func (d *decoder) expect(n *node, want nodeKind, path string) bool {
	if n.kind == want {
		return true
	}
	switch {
	case want == stringNode && n.kind < stringNode:
		d.errorf(path, "must be a string, not %s: quote it", n.kind)
	case want == intNode && n.kind == floatNode:
		d.errorf(path, "must be an integer")
	default:
		d.errorf(path, "must be %s, not %s", want, n.kind)
	}
	return false
}

func (d *decoder) intOrString(n *node, p *intstr.IntOrString, path string) {
	switch n.kind {
	case intNode, floatNode:
		text, ok := d.integer(n, path)
		if !ok {
			return
		}
		i, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			d.errorf(path, "%s is out of range", n.text)
			return
		}
		*p = intstr.FromInt32(int32(i))
	case stringNode:
		*p = intstr.FromString(n.text)
	default:
		d.errorf(path, "must be an integer or a string, not %s", n.kind)
	}
}

// stringMap decodes an object with any keys and strings as values.
func (d *decoder) stringMap(n *node, v reflect.Value, path string) {
	if !d.expect(n, objectNode, path) {
		return
	}
	m := reflect.MakeMapWithSize(v.Type(), len(n.fields))
	for _, f := range n.fields {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(f.value, e, entry(path, f.key))
		m.SetMapIndex(reflect.ValueOf(f.key), e)
	}
	v.Set(m)
}

func (d *decoder) object(n *node, v reflect.Value, path string) {
	if !d.expect(n, objectNode, path) {
		return
	}
	fields := d.fieldsOf(v.Type())
	for _, m := range n.fields {
		p := join(path, printable(m.key))
		known := false
		for _, f := range fields {
			if f.name == m.key {
				d.value(m.value, v.FieldByIndex(f.index), p)
				known = true
				break
			}
		}
		if !known {
			d.lines[p] = m.line
			d.unknown(p, m.key, fields)
		}
	}
}

// unknown refuses a field, with the name that may have been meant.
func (d *decoder) unknown(path, key string, fields []jsonField) {
	var meant []string
	for _, f := range fields {
		if similar(f.name, key) {
			meant = append(meant, f.name)
		}
	}
	if len(meant) > 0 {
		slices.Sort(meant)
		d.errorf(path, "unknown field; did you mean %s?", strings.Join(slices.Compact(meant), " or "))
		return
	}
	d.errorf(path, "unknown field")
}

// similar tells whether a name may have been meant by a key of about its length:
// it begins with it or the other way round, or no more than a letter of either is
// not in the other. Admission at an API server has the same rule, which is as much
// as can be said there (deploy/crds/generate).
func similar(name, key string) bool {
	if diff := utf8.RuneCountInString(name) - utf8.RuneCountInString(key); name == key || diff < -2 || diff > 2 {
		return false
	}
	n, k := strings.ToLower(name), strings.ToLower(key)
	return strings.HasPrefix(n, k) || strings.HasPrefix(k, n) || lettersOnlyIn(n, k)+lettersOnlyIn(k, n) <= 1
}

// lettersOnlyIn counts the letters of a that b does not have.
func lettersOnlyIn(a, b string) (n int) {
	for _, c := range a {
		if !strings.ContainsRune(b, c) {
			n++
		}
	}
	return n
}

// distance is the number of letters to add, drop or replace to turn a into b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

// fieldsOf lists the JSON names of a struct, those of inlined ones included.
func (d *decoder) fieldsOf(t reflect.Type) []jsonField {
	if f, ok := d.members[t]; ok {
		return f
	}
	var out []jsonField
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			for _, inner := range d.fieldsOf(f.Type) {
				out = append(out, jsonField{inner.name, append([]int{i}, inner.index...)})
			}
		case name != "" && name != "-":
			out = append(out, jsonField{name, []int{i}})
		}
	}
	d.members[t] = out
	return out
}

func ruleType() reflect.Type { return reflect.TypeFor[Rule]() }

// sorted returns the errors in the order of their lines.
func (d *decoder) sorted() []*Error {
	slices.SortStableFunc(d.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	return d.errs
}

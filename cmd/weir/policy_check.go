package main

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/policy/api"
)

const policyCheckLong = `Check reads policy objects as the agent does and names everything that is wrong
with them: unknown fields, wrong values, combinations that can't be enforced.

A PATH is a file, a directory (every *.yaml, *.yml and *.json below it), or -
for standard input. NetworkPolicy, CiliumNetworkPolicy,
CiliumClusterwideNetworkPolicy and CiliumCIDRGroup are checked, alone or in
lists; objects of other kinds are counted and passed over.

An error refuses the object: it would not be enforced as written, and the agent
would close its subjects instead. A warning refuses nothing: it names what is
allowed but hardly meant, and what this version does not enforce.

With -o json the output is a list with one item per policy object, or per
document that is no object:

  {"kind", "namespace", "name", "file", "document", "line", "accepted",
   "errors":   [{"line", "field", "message"}],
   "warnings": [{"line", "field", "message"}]}

Exit status: 0 nothing is refused, 1 something is, 2 the call was wrong or a
file could not be read.`

// newPolicyCheckCommand is `weir policy check`.
func newPolicyCheckCommand() *cobra.Command {
	var output string
	var strict bool
	cmd := &cobra.Command{
		Use:   "check PATH...",
		Short: "Name everything that is wrong with policy objects",
		Long:  policyCheckLong,
		Example: `  weir policy check policies/
  kubectl get netpol,cnp,ccnp -A -o yaml | weir policy check -
  weir policy check -o json web.yaml | jq '.[] | select(.accepted | not)'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("output %q is neither text nor json", output)
			}
			files, err := policyFiles(args)
			if err != nil {
				return err
			}
			var c policyCheck
			for _, name := range files {
				data, err := readPolicyFile(cmd.InOrStdin(), name)
				if err != nil {
					return err
				}
				c.add(displayName(name), data)
			}
			if output == "json" {
				err = c.writeJSON(cmd.OutOrStdout())
			} else {
				err = c.writeText(cmd.OutOrStdout())
			}
			if err != nil {
				return fmt.Errorf("write the result: %w", err)
			}
			if c.refused > 0 || strict && c.warnings > 0 {
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with status 1 for warnings, too")
	return cmd
}

// policyFiles lists the files that paths stand for, directories walked in
// lexical order. Hidden ones below a directory are left out.
func policyFiles(paths []string) ([]string, error) {
	var files []string
	for _, path := range paths {
		if path == "-" {
			files = append(files, path)
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, path)
			continue
		}
		err = filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case name != path && strings.HasPrefix(entry.Name(), "."):
				if entry.IsDir() {
					return filepath.SkipDir
				}
			case slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)):
				// A link may lead to a file or a directory; Stat knows.
				if info, err := os.Stat(name); err != nil {
					return err
				} else if info.Mode().IsRegular() {
					files = append(files, name)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", path, err)
		}
	}
	return files, nil
}

func readPolicyFile(stdin io.Reader, name string) ([]byte, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		stdin = f
	}
	// One byte more than is taken, so that what is larger is seen to be.
	data, err := io.ReadAll(io.LimitReader(stdin, api.MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", displayName(name), err)
	}
	return data, nil
}

func displayName(file string) string {
	if file == "-" {
		return "stdin"
	}
	return file
}

// checkedObject is an item of the JSON output.
type checkedObject struct {
	Kind      string    `json:"kind,omitempty"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name,omitempty"`
	File      string    `json:"file"`
	Document  int       `json:"document,omitempty"`
	Line      int       `json:"line,omitempty"`
	Accepted  bool      `json:"accepted"`
	Errors    []finding `json:"errors"`
	Warnings  []finding `json:"warnings"`
}

// finding is an error or a warning.
type finding struct {
	Line    int    `json:"line,omitempty"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
}

func findings(errs []*api.Error) []finding {
	out := make([]finding, 0, len(errs))
	for _, e := range errs {
		out = append(out, finding{e.Line, e.Field, e.Message})
	}
	return out
}

// policyCheck collects what was found.
type policyCheck struct {
	files, accepted, refused, errors, warnings, others int

	objects []checkedObject
	// places are where an object was defined first.
	places map[string]api.Position
}

func (c *policyCheck) add(file string, data []byte) {
	c.files++
	first := len(c.objects)
	defer func() {
		slices.SortStableFunc(c.objects[first:], func(a, b checkedObject) int { return a.Line - b.Line })
	}()
	objects := api.Read(file, data)
	for _, e := range objects.Errors {
		c.append(checkedObject{File: e.File, Document: e.Document, Line: e.Line}, []*api.Error{e}, nil)
	}
	for _, p := range objects.Policies {
		o := checkedObject{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name}
		c.append(o.at(p.Source), p.Refused, append(p.Warnings, c.twice(o, p.Source)...))
	}
	for _, g := range objects.CIDRGroups {
		o := checkedObject{Kind: api.KindCiliumCIDRGroup, Name: g.Name}
		c.append(o.at(g.Source), g.Refused, append(g.Warnings, c.twice(o, g.Source)...))
	}
	for i := range objects.Others {
		d := &objects.Others[i]
		c.others++
		if w := d.NotEnforced(); w != nil {
			o := checkedObject{Kind: d.Kind, Namespace: d.Namespace, Name: d.Name}
			o.Accepted, o.Errors, o.Warnings = true, findings(nil), findings([]*api.Error{w})
			c.objects = append(c.objects, o.at(d.Source))
			c.warnings++
		}
	}
}

func (o checkedObject) at(p api.Position) checkedObject {
	o.File, o.Document, o.Line = p.File, p.Document, p.Line
	return o
}

func (c *policyCheck) append(o checkedObject, errs, warnings []*api.Error) {
	o.Accepted, o.Errors, o.Warnings = len(errs) == 0, findings(errs), findings(warnings)
	c.objects = append(c.objects, o)
	if o.Accepted {
		c.accepted++
	} else {
		c.refused++
	}
	c.errors += len(errs)
	c.warnings += len(warnings)
}

// twice warns of an object that was defined before: one of the two is lost.
func (c *policyCheck) twice(o checkedObject, at api.Position) []*api.Error {
	if o.Name == "" {
		return nil
	}
	key := o.Kind + "/" + o.Namespace + "/" + o.Name
	if first, ok := c.places[key]; ok {
		return []*api.Error{{File: at.File, Document: at.Document, Line: at.Line, Field: "metadata.name",
			Message: fmt.Sprintf("%s %s is defined already at %s:%d: only one of them counts", o.Kind, o.Name, first.File, first.Line)}}
	}
	if c.places == nil {
		c.places = map[string]api.Position{}
	}
	c.places[key] = at
	return nil
}

func (c *policyCheck) writeJSON(w io.Writer) error {
	if c.objects == nil {
		c.objects = []checkedObject{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(c.objects)
}

func (c *policyCheck) writeText(w io.Writer) error {
	red, yellow, green, reset := "", "", "", ""
	if isTerminal(w) && os.Getenv("NO_COLOR") == "" {
		red, yellow, green, reset = "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[0m"
	}
	var b strings.Builder
	for _, o := range c.objects {
		for _, f := range o.Errors {
			fmt.Fprintf(&b, "%s%s%s\n", red, f.text(o.File), reset)
		}
		for _, f := range o.Warnings {
			f.Message = "warning: " + f.Message
			fmt.Fprintf(&b, "%s%s%s\n", yellow, f.text(o.File), reset)
		}
	}
	colour := green
	if c.refused > 0 {
		colour = red
	}
	fmt.Fprintf(&b, "%s%s: %d accepted, %d refused (%s), %s; %s passed over", colour, count(c.files, "file"),
		c.accepted, c.refused, count(c.errors, "error"), count(c.warnings, "warning"), count(c.others, "other object"))
	fmt.Fprintf(&b, "%s\n", reset)
	_, err := io.WriteString(w, b.String())
	return err
}

// text is "file:line: field: message".
func (f finding) text(file string) string {
	e := api.Error{File: file, Line: f.Line, Field: f.Field, Message: f.Message}
	return e.Error()
}

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// isTerminal tells whether somebody watches.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

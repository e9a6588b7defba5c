// Generate writes the custom resources of policy/api and what is checked of
// them at admission. It is run by go generate, in the directory of the files.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// controllerGen is run from its own module: it would bring many others.
const controllerGen = "sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0"

const header = "# Generated from policy/api by `make generate`. Do not edit.\n---\n"

// definition is a CustomResourceDefinition, as YAML has it.
type definition = map[string]any

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	dir, err := os.MkdirTemp("", "weir-crds-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cmd := exec.Command("go", "run", controllerGen, "crd", "paths=../../policy/api", "output:crd:dir="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("controller-gen: %w", err)
	}
	schemas := map[string]schema{}
	for _, plural := range []string{"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups"} {
		text, err := os.ReadFile(filepath.Join(dir, "cilium.io_"+plural+".yaml"))
		if err != nil {
			return err
		}
		var d definition
		if err := yaml.Unmarshal(text, &d); err != nil {
			return fmt.Errorf("%s: %w", plural, err)
		}
		if schemas[plural], err = finish(d, plural); err != nil {
			return fmt.Errorf("%s: %w", plural, err)
		}
		if err := write(plural+".yaml", d); err != nil {
			return err
		}
	}
	var both [2]schema
	for i, plural := range []string{"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies"} {
		both[i] = schemas[plural].child("spec")
	}
	if both[0].keysText() != both[1].keysText() {
		return errors.New("the two kinds of policies differ, and one admission policy is for both")
	}
	var docs []any
	docs = append(docs, admission("weir-policies", []string{"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies"}, policyVariables(schemas["ciliumnetworkpolicies"]))...)
	docs = append(docs, admission("weir-cidr-groups", []string{"ciliumcidrgroups"}, groupVariables(schemas["ciliumcidrgroups"]))...)
	return write("admission.yaml", docs...)
}

func write(name string, docs ...any) error {
	var out bytes.Buffer
	out.WriteString(header)
	for i, d := range docs {
		if i > 0 {
			out.WriteString("---\n")
		}
		text, err := yaml.Marshal(d)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		out.Write(text)
	}
	return os.WriteFile(name, out.Bytes(), 0o644)
}

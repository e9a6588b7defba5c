// Generate writes the rights of Weir's service account into the chart, and
// renders from the chart what is applied without Helm. It is run by go generate,
// in the directory above.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/kube"
)

// helm is run from its own module: it would bring many others.
const helm = "helm.sh/helm/v3/cmd/helm@v3.18.6"

const (
	chart = "weir"
	// kubeVersion is one that the chart is for; nothing in it depends on which.
	kubeVersion = "1.34.0"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := writeRules(chart + "/templates/_rules.tpl"); err != nil {
		return err
	}
	if err := command("lint", "--strict", "--quiet", "--kube-version="+kubeVersion, chart); err != nil {
		return err
	}
	if err := render("../weir.yaml", "Weir on every node. Its custom resources are in deploy/crds."); err != nil {
		return err
	}
	return render("../uninstall.yaml", "Takes Weir off every node: kubectl delete -f weir.yaml, apply this, wait for\n# kubectl -n weir-system rollout status daemonset/weir-uninstall, and delete this.", "uninstall=true")
}

// writeRules writes the rules as templates that a role includes.
func writeRules(path string) error {
	cluster, namespace := kube.ConditionRules()
	cluster = append(append(kube.Rules(), kube.DefinitionRules()...), cluster...)
	out := bytes.NewBufferString("{{/* Generated from package kube by `make generate`. Do not edit. */}}\n")
	for _, set := range []struct {
		name  string
		rules []rbacv1.PolicyRule
	}{
		{"clusterRules", kube.MergeRules(cluster)}, {"namespaceRules", namespace}, {"taintRules", kube.TaintRules()},
	} {
		text, err := yaml.Marshal(set.rules)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "{{- define \"weir.%s\" -}}\n%s{{- end -}}\n", set.name, text)
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// render renders the chart for the namespace that it makes itself.
func render(path, what string, values ...string) error {
	args := []string{"template", "weir", chart, "--namespace=weir-system", "--set=namespace.create=true", "--kube-version=" + kubeVersion}
	for _, v := range values {
		args = append(args, "--set="+v)
	}
	cmd := exec.Command("go", append([]string{"run", helm}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("helm template: %w", err)
	}
	text := append(fmt.Appendf(nil, "# %s\n# Rendered from deploy/helm/weir by `make generate`. Do not edit.\n", what), out.Bytes()...)
	return os.WriteFile(path, text, 0o644)
}

func command(args ...string) error {
	cmd := exec.Command("go", append([]string{"run", helm}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("helm %s: %w", args[0], err)
	}
	return nil
}

package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

// TestCRDsPrint: what is printed is what an API server can take, whole.
func TestCRDsPrint(t *testing.T) {
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetArgs([]string{"crds", "print"})
	cmd.SetOut(&out)
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	docs, errs := api.Documents("", out.Bytes())
	var names []string
	for _, d := range docs {
		names = append(names, d.Name)
	}
	want := "ciliumnetworkpolicies.cilium.io ciliumclusterwidenetworkpolicies.cilium.io ciliumcidrgroups.cilium.io " +
		"weir-policies weir-policies weir-cidr-groups weir-cidr-groups"
	if got := strings.Join(names, " "); got != want || len(errs) > 0 {
		t.Errorf("%s %v, want %s", got, errs, want)
	}
}

// TestCRDsApply: a person with a kubeconfig applies them; over others' it fails
// with status 1 and says so.
func TestCRDsApply(t *testing.T) {
	s := apiserver.Require(t)
	kubeconfig, err := s.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	apply := func() (out, said string, code int) {
		var stdout, stderr bytes.Buffer
		cmd := newRoot()
		cmd.SetArgs([]string{"crds", "apply", "--kubeconfig", kubeconfig})
		cmd.SetOut(&stdout)
		cmd.SetErr(&stderr)
		var exit exitCode
		if err := cmd.Execute(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return stdout.String(), stderr.String(), int(exit)
	}
	for range 2 {
		if out, said, code := apply(); code != 0 || strings.Count(out, "applied\n") != 7 {
			t.Fatalf("%d %s %s", code, out, said)
		}
	}
	status, answer, err := s.Do("PATCH", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ciliumcidrgroups.cilium.io",
		"application/merge-patch+json", []byte(`{"metadata":{"labels":{"app.kubernetes.io/part-of":null}}}`))
	if err != nil || status != 200 {
		t.Fatal(status, string(answer), err)
	}
	if out, said, code := apply(); code != 1 || out != "" || !strings.Contains(said, "ciliumcidrgroups.cilium.io") {
		t.Errorf("over others': %d %s %s", code, out, said)
	}
}

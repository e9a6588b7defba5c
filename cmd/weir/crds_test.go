package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/weirnet/weir/deploy/crds"
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
	apply := func(flags ...string) (out, said string, code int) {
		var stdout, stderr bytes.Buffer
		cmd := newRoot()
		cmd.SetArgs(append([]string{"crds", "apply", "--kubeconfig", kubeconfig}, flags...))
		cmd.SetOut(&stdout)
		cmd.SetErr(&stderr)
		var exit exitCode
		if err := cmd.Execute(); err != nil && !errors.As(err, &exit) {
			return stdout.String(), err.Error(), 2
		}
		return stdout.String(), stderr.String(), int(exit)
	}
	// Somebody may have applied the same files, as the README says.
	asKubectl(t, s)
	for range 2 {
		if out, said, code := apply(); code != 0 || strings.Count(out, "applied\n") != 7 {
			t.Fatalf("%d %s %s", code, out, said)
		}
	}
	// A field that somebody else has changed is his, until it is taken over.
	const policy = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/weir-policies?fieldManager=somebody"
	status, answer, err := s.Do("PATCH", policy, "application/merge-patch+json", []byte(`{"spec":{"failurePolicy":"Fail"}}`))
	if err != nil || status != 200 {
		t.Fatal(status, string(answer), err)
	}
	out, said, code := apply()
	for _, want := range []string{"somebody", ".spec.failurePolicy", "weir-policies", "--force-conflicts"} {
		if code != 2 || out != "" || !strings.Contains(said, want) {
			t.Errorf("over others' fields: %d %q %s, want %s", code, out, said, want)
		}
	}
	if out, said, code := apply("--force-conflicts"); code != 0 || strings.Count(out, "applied\n") != 7 {
		t.Errorf("by force: %d %s %s", code, out, said)
	}
	status, answer, err = s.Do("PATCH", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ciliumcidrgroups.cilium.io",
		"application/merge-patch+json", []byte(`{"metadata":{"labels":{"app.kubernetes.io/part-of":null}}}`))
	if err != nil || status != 200 {
		t.Fatal(status, string(answer), err)
	}
	if out, said, code := apply("--force-conflicts"); code != 1 || out != "" || !strings.Contains(said, "ciliumcidrgroups.cilium.io") {
		t.Errorf("over others': %d %s %s", code, out, said)
	}
}

// asKubectl applies what is printed as kubectl apply --server-side does.
func asKubectl(t *testing.T, s *apiserver.Server) {
	t.Helper()
	docs, _ := api.Documents("", append(crds.Definitions(), crds.Admission()...))
	for i := range docs {
		body, err := docs[i].JSON()
		if err != nil {
			t.Fatal(err)
		}
		path := apiserver.Path(docs[i].APIVersion, docs[i].Kind, "") + "/" + docs[i].Name + "?fieldManager=kubectl"
		if status, answer, err := s.Do("PATCH", path, "application/apply-patch+yaml", body); err != nil || status >= 300 {
			t.Fatal(status, string(answer), err)
		}
	}
}

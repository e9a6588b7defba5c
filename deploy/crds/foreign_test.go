package crds_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/deploy/crds"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

// theirs is a definition of somebody else's that knows fields which ours does not.
const theirs = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ciliumnetworkpolicies.cilium.io, labels: {somebody: else}}
spec:
  group: cilium.io
  scope: Namespaced
  names: {kind: CiliumNetworkPolicy, plural: ciliumnetworkpolicies, singular: ciliumnetworkpolicy, listKind: CiliumNetworkPolicyList}
  versions:
  - name: v2
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
`

// TestForeign: where a definition is not Weir's its admission policies say nothing
// of the objects, though they are applied; with Weir's in its place they do, and
// with another again they don't.
func TestForeign(t *testing.T) {
	s := apiserver.Require(t)
	apply(t, s, []byte(theirs))
	// What kubectl does with the directory: all but what conflicts.
	docs, _ := api.Documents("", crds.Definitions())
	conflicts := 0
	for i := range docs {
		body, err := docs[i].JSON()
		if err != nil {
			t.Fatal(err)
		}
		path := apiserver.Path(docs[i].APIVersion, docs[i].Kind, "") + "/" + docs[i].Name
		switch status, answer, err := s.Do("PATCH", path+"?fieldManager=kubectl", "application/apply-patch+yaml", body); {
		case err != nil || status != 409 && status >= 300:
			t.Fatal(status, string(answer), err)
		case status == 409:
			conflicts++
		}
	}
	if conflicts != 1 {
		t.Fatalf("%d conflicts", conflicts)
	}
	apply(t, s, crds.Admission())

	unknown := func(kind string) (int, string) {
		namespace := ""
		if kind == api.KindCiliumPolicy {
			namespace = `,"namespace":"default"`
		}
		return create(t, s, []byte(`{"apiVersion":"cilium.io/v2","kind":"`+kind+`","metadata":{"name":"t"`+namespace+`},`+
			`"spec":{"endpointSelector":{},"ingress":[{"fromFuture":[{}]}]}}`))
	}
	until := func(what, kind string, want int) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			status, answer := unknown(kind)
			if status == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %d %s", what, status, answer)
			}
		}
	}
	// The policy is at work, for the definition beside it, which is Weir's.
	until("Weir's own", api.KindClusterwide, 422)
	for range 20 {
		if status, answer := unknown(api.KindCiliumPolicy); status != 201 {
			t.Fatalf("somebody else's: %d %s", status, answer)
		}
	}

	const path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ciliumnetworkpolicies.cilium.io"
	force := func(manager string, text []byte) {
		t.Helper()
		if status, answer, err := s.Do("PATCH", path+"?force=true&fieldManager="+manager, "application/apply-patch+yaml", text); err != nil || status != 200 {
			t.Fatal(status, string(answer), err)
		}
	}
	docs, _ = api.Documents("", crds.Definitions())
	weirs, err := docs[0].JSON()
	if err != nil {
		t.Fatal(err)
	}
	force("weir", weirs)
	until("Weir's in its place", api.KindCiliumPolicy, 422)
	// Merged over Weir's, it leaves Weir's label.
	force("other", []byte(theirs))
	if _, answer, err := s.Do("GET", path, "", nil); err != nil || !bytes.Contains(answer, []byte(crds.PartOf)) || !strings.Contains(string(answer), "somebody") {
		t.Fatalf("%s %v", answer, err)
	}
	until("merged over Weir's", api.KindCiliumPolicy, 201)
}

package crds_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/deploy/crds"
	"github.com/weirnet/weir/policy/api"
	"github.com/weirnet/weir/test/apiserver"
)

// TestServer puts the definitions to a real API server.
func TestServer(t *testing.T) {
	s := start(t)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s *apiserver.Server)
	}{
		{"agrees with the decoder", testAgreesWithDecoder}, {"refusals", testRefusals}, {"large", testLarge}, {"updates", testUpdates},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

// start runs an API server with the definitions.
func start(t *testing.T) *apiserver.Server {
	t.Helper()
	s := apiserver.Require(t)
	apply(t, s, crds.Definitions())
	apply(t, s, crds.Admission())
	// A new admission policy holds after a moment.
	const typo = `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"t","namespace":"default"},"sepc":{},"spec":{"endpointSelector":{},"ingress":[{}]}}`
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, answer := create(t, s, []byte(typo))
		group, _ := create(t, s, []byte(`{"apiVersion":"cilium.io/v2","kind":"CiliumCIDRGroup","metadata":{"name":"t"},"sepc":{},"spec":{"externalCIDRs":[]}}`))
		if status == 422 && group == 422 && strings.Contains(answer, "unknown field") {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("unknown fields are not refused: %d %s", status, answer)
		}
	}
}

func apply(t *testing.T, s *apiserver.Server, text []byte) {
	t.Helper()
	docs, errs := api.Documents("", text)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for i := range docs {
		body, err := docs[i].JSON()
		if err != nil {
			t.Fatal(err)
		}
		path := apiserver.Path(docs[i].APIVersion, docs[i].Kind, docs[i].Namespace) + "/" + docs[i].Name
		// A definition is served a moment after it was applied.
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			status, answer, err := s.Do("PATCH", path+"?fieldManager=test", "application/apply-patch+yaml", body)
			if err == nil && status < 300 {
				break
			}
			if err != nil || status != 404 || time.Now().After(end) {
				t.Fatalf("%s: %v %d %s", path, err, status, answer)
			}
		}
	}
}

// create asks for an object to be created, which it is not.
func create(t *testing.T, s *apiserver.Server, object []byte) (status int, answer string) {
	t.Helper()
	var o struct {
		APIVersion, Kind string
		Metadata         struct{ Namespace string }
	}
	if err := json.Unmarshal(object, &o); err != nil {
		return 400, err.Error()
	}
	if o.Metadata.Namespace == "" {
		o.Metadata.Namespace = api.DefaultNamespace
	}
	status, text, err := s.Do("POST", apiserver.Path(o.APIVersion, o.Kind, o.Metadata.Namespace)+"?dryRun=All", "application/json", object)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

// testRefusals: what is refused is named with its place, and what was meant.
func testRefusals(t *testing.T, s *apiserver.Server) {
	const head = `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"t","namespace":"default"},`
	web := `"spec":{"endpointSelector":{},"ingress":[`
	for _, tt := range []struct{ name, object, want string }{
		{"field", head + web + `{},{"fromEndpoint":[{}]}]}}`, "spec.ingress[1].fromEndpoint: unknown field; did you mean fromEndpoints?"},
		{"case", head + `"spec":{"endpointSelector":{"matchlabels":{"a":"b"}},"ingress":[{}]}}`, "spec.endpointSelector.matchlabels: unknown field; did you mean matchLabels?"},
		{"letters", head + web + `{"toProts":[]}]}}`, "spec.ingress[0].toProts: unknown field; did you mean toPorts?"},
		{"what a line ends with is a user's", head + web + `{"a: unknown field|x\nb: unknown field|999":1,"toProts":[]}]}}`, "spec.ingress[0].toProts: unknown field; did you mean toPorts?"},
		{"nothing near", head + web + `{"xyz":1}]}}`, "spec.ingress[0].xyz: unknown field"},
		{"top", head + `"sepc":{},` + web + `{}]}}`, "sepc: unknown field; did you mean spec or specs?"},
		{"specs", head + `"specs":[{"endpointSelector":{},"ingress":[{}]},{"endpointSelector":{},"egress":[{"toFQDN":[]}]}]}`, "specs[1].egress[0].toFQDN: unknown field; did you mean toFQDNs?"},
		{"spec and specs", head + web + `{}]},"specs":[{"endpointSelector":{},"egress":[{"toFQDN":[]}]}]}`, "specs[0].egress[0].toFQDN: unknown field"},
		{"deep", head + web + `{"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}],"rules":{"http":[{},{"headerMatches":[{"name":"a","vale":"b"}]}]}}]}]}}`,
			"spec.ingress[0].toPorts[0].rules.http[1].headerMatches[0].vale: unknown field; did you mean value?"},
		{"null", head + web + `{"fromEndpoints":null,"toPorts":[{"ports":[{"port":"80"}]}]}]}}`, "spec.ingress[0].fromEndpoints: must not be null"},
		{"null label", head + `"spec":{"endpointSelector":{"matchLabels":{"app":null}},"ingress":[{}]}}`, "spec.endpointSelector.matchLabels[app]: must not be null"},
		{"two kinds", head + web + `{"fromEntities":["host"],"fromCIDR":["10.0.0.0/8"]}]}}`, "spec.ingress[0]: combines fromCIDR and fromEntities"},
		{"several", head + web + `{"x":1},{"y":1}]}}`, "spec.ingress[0].x: unknown field; spec.ingress[1].y: unknown field"},
		{"entity", head + web + `{"fromEntities":["Host"]}]}}`, `Unsupported value: \"Host\"`},
		{"node selector", head + `"spec":{"nodeSelector":{},"ingress":[{}]}}`, "only a CiliumClusterwideNetworkPolicy selects nodes"},
		{"group", `{"apiVersion":"cilium.io/v2alpha1","kind":"CiliumCIDRGroup","metadata":{"name":"t"},"spec":{"externalCIDR":[],"externalCIDRs":[]}}`, "spec.externalCIDR: unknown field; did you mean externalCIDRs?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, answer := create(t, s, []byte(tt.object))
			if status != 422 || !strings.Contains(answer, tt.want) {
				t.Errorf("%d %s\nwant %s", status, answer, tt.want)
			}
			// The agent says the same, where the object comes to it.
			docs, _ := api.Documents("", []byte(tt.object))
			_, wrong := meaning(&docs[0])
			hints := 0
			for _, e := range wrong {
				hints += sameHint(t, answer, e)
			}
			if hints == 0 && strings.Contains(tt.want, "did you mean") {
				t.Errorf("the agent has no hint: %v", wrong)
			}
		})
	}
}

// testLarge: a policy that is too large for admission to look through is not
// refused for that.
func testLarge(t *testing.T, s *apiserver.Server) {
	rule := `{"fromEndpoints":[{"matchLabels":{"app":"a"}}],"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}],"rules":{"http":[{"path":"/"}]}}]}`
	for _, n := range []int{1000, 10000} {
		object := `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"t","namespace":"default"},"spec":{"endpointSelector":{},"ingress":[` +
			strings.Repeat(rule+",", n-1) + rule + `]}}`
		begin := time.Now()
		if status, answer := create(t, s, []byte(object)); status != 201 {
			t.Errorf("%d rules: %d %.500s", n, status, answer)
		}
		t.Logf("%d rules: %v", n, time.Since(begin))
	}
}

// testUpdates: what is there and wrong can still be deleted and labelled, but
// not be changed to something wrong.
func testUpdates(t *testing.T, s *apiserver.Server) {
	const path = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies"
	object := `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"old","namespace":"default","finalizers":["weir.test/wait"]},` +
		`"spec":{"endpointSelector":{},"ingress":[{"fromEndpoint":[]}]}}`
	do := func(method, path, body string) (int, string) {
		t.Helper()
		status, answer, err := s.Do(method, path, map[string]string{"PATCH": "application/merge-patch+json", "DELETE": "application/json"}[method], []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return status, string(answer)
	}
	const binding = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/weir-policies"
	if status, answer := do("DELETE", binding, "{}"); status != 200 {
		t.Fatal(status, answer)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, answer, err := s.Do("POST", path, "application/json", []byte(object))
		if err != nil {
			t.Fatal(err)
		}
		if status == 201 {
			break
		}
		if time.Now().After(end) {
			t.Fatal(status, string(answer))
		}
	}
	apply(t, s, crds.Admission())
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, answer := do("PATCH", path+"/old", `{"spec":{"description":"`+time.Now().String()+`"}}`)
		if status == 422 && strings.Contains(answer, "fromEndpoint") {
			break
		}
		if time.Now().After(end) {
			t.Fatal(status, answer)
		}
	}
	if status, answer := do("PATCH", path+"/old", `{"metadata":{"labels":{"a":"b"}}}`); status != 200 {
		t.Errorf("a label: %d %s", status, answer)
	}
	if status, answer := do("DELETE", path+"/old", "{}"); status != 200 {
		t.Errorf("deletion: %d %s", status, answer)
	}
	if status, answer := do("PATCH", path+"/old", `{"metadata":{"finalizers":null}}`); status != 200 {
		t.Errorf("the last finalizer: %d %s", status, answer)
	}
}

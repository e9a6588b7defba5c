package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const explainObjects = `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: web, port: 80, targetPort: http}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: api}}]
    toPorts: [{ports: [{port: http, protocol: TCP}], rules: {http: [{path: "/v1/.*", headers: ["X-A: b"]}]}}]
  - fromCIDR: [1.2.3.0/24]
`

// explainDir writes objects into a directory.
func explainDir(t testing.TB, yaml string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPolicyExplain(t *testing.T) {
	dir := explainDir(t, explainObjects)
	file := filepath.Join(dir, "all.yaml")
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"--from shop/api --to shop/web --port 80", 1, `DENIED  shop/api -> shop/web, TCP port 80

egress   allowed  not enforced: no policy selects pod shop/api for egress

ingress  denied   default deny: no rule allows it and a policy selects pod shop/web
                  CiliumNetworkPolicy shop/web
  not CiliumNetworkPolicy shop/web  spec.ingress[0].toPorts[0]  FILE:29
      TCP port 80 is not among its ports: TCP 8080, the port named http
  not CiliumNetworkPolicy shop/web  spec.ingress[1]  FILE:30
      pod shop/api is not among its peers: CIDR 1.2.3.0/24
`},
		{"--from shop/api --to shop/web --port http", 0, `L7  shop/api -> shop/web, TCP port http

egress   allowed  not enforced: no policy selects pod shop/api for egress

ingress  l7       each request is judged by 1 HTTP rule
                  CiliumNetworkPolicy shop/web  spec.ingress[0].toPorts[0]  FILE:29
  not CiliumNetworkPolicy shop/web  spec.ingress[1]  FILE:30
      pod shop/api is not among its peers: CIDR 1.2.3.0/24
`},
		{"--from 1.2.3.4 --to shop/web --protocol ICMP --icmp-type 8", 0, `ALLOWED  1.2.3.4 -> shop/web, ICMP type 8

egress   n/a      1.2.3.4 (outside) is no pod, no policy is enforced there

ingress  allowed  a rule allows it
                  CiliumNetworkPolicy shop/web  spec.ingress[1]  FILE:30
  not CiliumNetworkPolicy shop/web  spec.ingress[0]  FILE:28
      1.2.3.4 (outside) is not among its peers: endpoints app=api in namespace shop
`},
	} {
		out, status := runPolicy(t, "", append([]string{"explain", "--objects", dir}, strings.Fields(c.args)...)...)
		if diff := cmp.Diff(strings.ReplaceAll(c.want, "FILE", file), out); diff != "" || status != c.status {
			t.Errorf("%s: status %d, want %d\n%s", c.args, status, c.status, diff)
		}
	}
}

func TestPolicyExplainRequests(t *testing.T) {
	dir := explainDir(t, explainObjects)
	for args, want := range map[string]string{
		"--to shop/web --port 8080 --http-path /v1/x --http-header x-a=b":       "allowed",
		"--to shop/web --port 8080 --http-path /v1/x":                           "denied",
		"--to shop/web --port 8080 --http-path /v1/../x --http-header X-A=b":    "denied",
		"--to service:shop/web --port 80 --http-path /v1/x --http-header X-A=b": "allowed",
		"--to service:shop/web --port web":                                      "l7",
		"--to 10.96.0.1 --port 80":                                              "l7",
		"--to service:shop/web --port 81":                                       "error",
		"--to shop/nobody --port 81":                                            "error",
	} {
		out, status := runPolicy(t, "", append([]string{"explain", "--objects", dir, "--from", "shop/api", "-o", "json"}, strings.Fields(args)...)...)
		var a struct {
			Verdict         string
			Egress, Ingress *struct{ Verdict, Reason string }
			Error           string
		}
		if err := json.Unmarshal([]byte(out), &a); err != nil {
			t.Fatalf("%s: %v\n%s", args, err, out)
		}
		if a.Verdict != want || (want == "error") != (a.Error != "") {
			t.Errorf("%s: %s", args, out)
		}
		if wantStatus := map[string]int{"denied": 1, "error": 2}[want]; status != wantStatus {
			t.Errorf("%s: exit status %d", args, status)
		}
	}
}

// TestPolicyExplainNames: DNS questions, and what addresses are called.
func TestPolicyExplainNames(t *testing.T) {
	dir := explainDir(t, explainObjects+`---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  egress:
  - toEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchPattern: "*.example.test"}]}}]
  - toFQDNs: [{matchName: api.example.test}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
`)
	file := filepath.Join(dir, "all.yaml")
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"--to 192.0.2.7 --port 443 --name x.test --name API.example.test.", 0, `ALLOWED  shop/api -> 192.0.2.7 (x.test, API.example.test.), TCP port 443

egress   allowed  a rule allows it
                  CiliumNetworkPolicy shop/api  spec.egress[1].toPorts[0]  FILE:41
  not CiliumNetworkPolicy shop/api  spec.egress[0]  FILE:38
      192.0.2.7 (outside) is not among its peers: endpoints app=web in namespace shop

ingress  n/a      192.0.2.7 (outside) is no pod, no policy is enforced there
`},
		{"--to 192.0.2.7 --port 443", 1, `DENIED  shop/api -> 192.0.2.7, TCP port 443

egress   denied   default deny: no rule allows it and a policy selects pod shop/api
                  CiliumNetworkPolicy shop/api
  not CiliumNetworkPolicy shop/api  spec.egress[0]  FILE:38
      192.0.2.7 (outside) is not among its peers: endpoints app=web in namespace shop
  not CiliumNetworkPolicy shop/api  spec.egress[1]  FILE:40
      192.0.2.7 (outside) is not among its peers: name api.example.test

ingress  n/a      192.0.2.7 (outside) is no pod, no policy is enforced there
`},
	} {
		out, status := runPolicy(t, "", append([]string{"explain", "--objects", dir, "--from", "shop/api"}, strings.Fields(c.args)...)...)
		if diff := cmp.Diff(strings.ReplaceAll(c.want, "FILE", file), out); diff != "" || status != c.status {
			t.Errorf("%s: status %d, want %d\n%s", c.args, status, c.status, diff)
		}
	}
	for args, want := range map[string]string{
		"--dns-name a.example.test":                          "UDP port 53, A a.example.test",
		"--dns-name a.example.test --dns-type AAAA":          "UDP port 53, AAAA a.example.test",
		"--dns-name a.example.test --protocol TCP --port 53": "TCP port 53, A a.example.test",
	} {
		out, _ := runPolicy(t, "", append([]string{"explain", "--objects", dir, "--from", "shop/api", "--to", "shop/web"}, strings.Fields(args)...)...)
		if !strings.Contains(out, "shop/web, "+want+"\n\negress   allowed  a DNS rule allows the question\n") {
			t.Errorf("%s:\n%s", args, out)
		}
	}
	if _, status := runPolicy(t, "", "explain", "--objects", dir, "--from", "shop/api", "--to", "shop/web", "--dns-type", "A"); status != 2 {
		t.Error("a DNS question without a name is answered")
	}
}

func TestPolicyExplainUsage(t *testing.T) {
	dir := explainDir(t, explainObjects)
	for _, args := range []string{
		"--from shop/api --to shop/web", "--objects " + dir, "--objects " + dir + " --from shop/api", "--objects " + dir + " --from a --to b --batch -",
		"--objects " + dir + " --from shop/api --to shop/web -o yaml", "--objects " + dir + "/none --from shop/api --to shop/web --port 1",
		"--objects " + dir + " --from shop/api --to shop/web --port 1 --http-header x", "--objects " + dir + " --batch " + dir + "/none", "extra",
	} {
		if _, status := runPolicy(t, "", append([]string{"explain"}, strings.Fields(args)...)...); status != 2 {
			t.Errorf("%s: exit status %d", args, status)
		}
	}
}

func TestPolicyExplainBatch(t *testing.T) {
	dir := explainDir(t, explainObjects)
	in := strings.Join([]string{
		`{"id":"1","from":"shop/api","to":"shop/web","port":8080,"protocol":"TCP"}`,
		`{"id":"2","from":"shop/api","to":"shop/web","port":81,"protocol":"TCP"}`,
		``,
		`this is no question`,
		`{"id":"4","from":"shop/api"}`,
		`{"id":5,"from":"entity:world","to":"10.0.0.1","port":80}`,
		`{"id":"6","from":"` + strings.Repeat("x", maxQuestion) + `"}`,
		`{"id":"7","from":"shop/api","to":"service:shop/web","port":80,"http":{"method":"GET","path":"/v1/x?y","host":"h","headers":{"X-A":["b"]}}}`,
		`{"id":"8","from":"shop/api","to":"192.0.2.7","port":443,"names":["api.example.test"]}`,
		`{"id":"9","from":"shop/api","to":"shop/web","port":53,"protocol":"UDP","dns":{"name":"x.example.test","type":"A"}}`,
		`{"id":"10","from":"shop/api","to":"192.0.2.7","port":443,"names":["api.example.test"],"namesIn":"shop"}`,
		`{"id":"11","from":"shop/api","to":"192.0.2.7","port":443,"namesIn":"shop"}`,
		`{"id":"12","from":"shop/api","to":"192.0.2.7","port":443,"names":["api.example.test"],"namesIn":7}`,
	}, "\n") // the last line without an end
	out, status := runPolicy(t, in, "explain", "--objects", dir, "--batch", "-")
	var got []string
	for line := range strings.Lines(out) {
		var a struct {
			ID      any
			Verdict string
			Error   string
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got = append(got, fmt.Sprint(a.ID, " ", a.Verdict, " ", a.Error != ""))
	}
	want := []string{"1 l7 false", "2 denied false", "<nil> error true", "4 error true", "5 denied false", "6 error true", "7 allowed false", "8 allowed false", "9 denied false", "10 allowed false", "11 error true", "12 error true"}
	if diff := cmp.Diff(want, got); diff != "" || status != 0 {
		t.Errorf("exit status %d\n%s", status, diff)
	}
	want1 := `{"id":"1","verdict":"l7","egress":{"verdict":"allowed","reason":"not enforced: no policy selects pod shop/api for egress"},` +
		`"ingress":{"verdict":"l7","policy":"CiliumNetworkPolicy shop/web","rule":"spec.ingress[0].toPorts[0]",` +
		`"reason":"each request is judged by 1 HTTP rule","file":"` + filepath.Join(dir, "all.yaml") + `","line":29}}`
	if first, _, _ := strings.Cut(out, "\n"); first != want1 {
		t.Errorf("got  %s\nwant %s", first, want1)
	}
}

func TestPolicyExplainRefused(t *testing.T) {
	dir := explainDir(t, explainObjects+`---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: broken, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEntities: [everybody]}]
`)
	out, status := runPolicy(t, "", "explain", "--objects", dir, "--from", "shop/api", "--to", "shop/web", "--port", "http")
	if status != 1 || !strings.Contains(out, "refused: what it selects is closed") || !strings.Contains(out, "the policy was refused, so what it selects is closed:") {
		t.Errorf("exit status %d\n%s", status, out)
	}
}

// TestPolicyExplainManyQuestions: 100,000 questions take seconds.
func TestPolicyExplainManyQuestions(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	var yaml, in strings.Builder
	for i := range 200 {
		fmt.Fprintf(&yaml, `apiVersion: v1
kind: Pod
metadata: {name: p%[1]d, namespace: ns%[2]d, labels: {app: a%[1]d, tier: t%[3]d}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.0.%[2]d.%[1]d, podIPs: [{ip: 10.0.%[2]d.%[1]d}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p%[1]d, namespace: ns%[2]d}
spec:
  endpointSelector: {matchLabels: {tier: t%[3]d}}
  ingress: [{fromEndpoints: [{matchLabels: {app: a%[1]d}}], toPorts: [{ports: [{port: "80"}]}]}]
  egress: [{toCIDR: [1.2.%[1]d.0/24]}, {toEndpoints: [{}], toPorts: [{ports: [{port: "80"}]}]}]
---
`, i, i%10, i%3)
	}
	const n = 100_000
	for i := range n {
		fmt.Fprintf(&in, `{"id":"%d","from":"ns%d/p%d","to":"ns%d/p%d","port":80,"protocol":"TCP"}`+"\n", i, i%10, i%200, i/7%200%10, i/7%200)
	}
	dir := explainDir(t, yaml.String())
	start := time.Now()
	out, status := runPolicy(t, in.String(), "explain", "--objects", dir, "--batch", "-")
	took := time.Since(start)
	if lines := strings.Count(out, "\n"); lines != n || status != 0 || strings.Contains(out, `"error"`) {
		t.Errorf("%d answers, exit status %d", lines, status)
	}
	t.Logf("%d answers in %v", n, took)
	if took > time.Minute { // seconds where the machine has nothing else to do
		t.Errorf("took %v", took)
	}
}

// TestPolicyExplainNodeAddress: what the node has besides what its object says.
func TestPolicyExplainNodeAddress(t *testing.T) {
	dir := explainDir(t, explainObjects+`---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  egress: [{toCIDR: [0.0.0.0/0]}]
`)
	ask := []string{"explain", "--objects", dir, "--from", "shop/api", "--to", "172.17.0.1", "--port", "80"}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{nil, 0, "allowed"},
		{[]string{"--node-name", "n1"}, 0, "allowed"},
		{[]string{"--node-name", "n1", "--node-address", "172.17.0.1"}, 1, "denied"},
		{[]string{"--node-name", "n2", "--node-address", "172.17.0.1"}, 0, "allowed"},
		{[]string{"--node-name", "n1", "--node-address", "172.17.0"}, 2, ""},
		{[]string{"--node-address", "172.17.0.1"}, 2, ""},
	} {
		out, status := runPolicy(t, "", slices.Concat(ask, c.args)...)
		if status != c.status || !strings.Contains(strings.ToLower(out), c.want) {
			t.Errorf("%v: status %d, %s", c.args, status, out)
		}
	}
}

package api

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkRead reads a file of 1,000 policies, as a directory with many would be.
func BenchmarkRead(b *testing.B) {
	var file strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&file, "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p%d, namespace: shop}\nspec:\n  endpointSelector: {matchLabels: {app: a%d}}\n"+
			"  ingress:\n  - fromEndpoints: [{matchLabels: {app: b}}]\n    toPorts:\n    - ports: [{port: \"80\", protocol: TCP}]\n      rules: {http: [{method: GET, path: \"/api/v%d/.*\"}]}\n", i, i, i)
	}
	data := []byte(file.String())
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if got := Read("f", data); len(got.Policies) != 1000 {
			b.Fatal(len(got.Policies))
		}
	}
}

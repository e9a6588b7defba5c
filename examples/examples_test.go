package examples

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirnet/weir/policy/api"
)

// TestAccepted: what users are shown is enforced as written.
func TestAccepted(t *testing.T) {
	files, err := filepath.Glob("*/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects := api.Read(file, text)
		for _, e := range objects.Errors {
			t.Errorf("%s", e)
		}
		for _, p := range objects.Policies {
			for _, e := range p.Refused {
				t.Errorf("%s", e)
			}
		}
		if len(objects.Policies) == 0 && filepath.Base(file) != "pods.yaml" {
			t.Errorf("%s holds no policy", file)
		}
		if filepath.Dir(file) == "policies" && !strings.Contains(string(readme), "`"+filepath.Base(file)+"`") {
			t.Errorf("README.md does not speak of %s", file)
		}
		if !strings.HasPrefix(string(text), "# ") {
			t.Errorf("%s does not begin with what it is for", file)
		}
	}
}

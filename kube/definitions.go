package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/policy/api"
)

// Definitions looks after the custom resources of an API server: Weir's own, or
// those that are there instead, mostly Cilium's.
type Definitions struct {
	api *conditionsClient
	// label and value are what Weir's own have.
	label, value string

	mu    sync.Mutex
	notes []string
}

// NewDefinitions returns Definitions that know Weir's own by a label.
func NewDefinitions(config *rest.Config, label, value string) (*Definitions, error) {
	client, err := newConditionsClient(config, "")
	if err != nil {
		return nil, err
	}
	return &Definitions{api: client, label: label, value: value}, nil
}

// DefinitionRules are the rights that Foreign needs.
func DefinitionRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{{
		APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"},
		ResourceNames: definitionNames(), Verbs: []string{"get"},
	}}
}

// definitionNames are the names of the definitions that Weir reads objects of.
func definitionNames() []string {
	var out []string
	for _, r := range resources() {
		if r.optional {
			out = append(out, r.String())
		}
	}
	return out
}

const definitionsPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"

// Foreign names the definitions that are there and not Weir's.
func (d *Definitions) Foreign(ctx context.Context) ([]string, error) {
	var out []string
	for _, name := range definitionNames() {
		foreign, err := d.foreign(ctx, definitionsPath+name)
		if err != nil {
			return nil, fmt.Errorf("look for the definition %s: %w", name, err)
		}
		if foreign {
			out = append(out, name)
		}
	}
	return out, nil
}

// foreign tells whether an object is there without the label.
func (d *Definitions) foreign(ctx context.Context, path string) (bool, error) {
	text, err := d.api.rest.Get().AbsPath(path).
		SetHeader("Accept", jsonText+";as=PartialObjectMetadata;g=meta.k8s.io;v=v1").DoRaw(ctx)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var o struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(text, &o); err != nil {
		return false, err
	}
	return o.Metadata.Labels[d.label] != d.value, nil
}

// ForeignError says that objects are there which are somebody else's.
type ForeignError struct{ Names []string }

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%q are there already and not Weir's: nothing is applied", e.Names)
}

// Apply applies YAML documents server-side as the manager weir, without force,
// and says what it applied. It applies nothing if one of their names is taken
// by an object that is not Weir's: a *ForeignError.
func (d *Definitions) Apply(ctx context.Context, text []byte, say func(object string)) error {
	docs, errs := api.Documents("", text)
	if len(errs) > 0 {
		return errs[0]
	}
	paths := make([]string, len(docs))
	var taken []string
	for i := range docs {
		paths[i] = appliedPath(&docs[i])
		if paths[i] == "" {
			return fmt.Errorf("%s of %s is not known", docs[i].Kind, docs[i].APIVersion)
		}
		foreign, err := d.foreign(ctx, paths[i])
		if err != nil {
			return fmt.Errorf("look for %s %s: %w", docs[i].Kind, docs[i].Name, err)
		}
		if foreign {
			taken = append(taken, docs[i].Name)
		}
	}
	if len(taken) > 0 {
		slices.Sort(taken)
		return &ForeignError{slices.Compact(taken)}
	}
	for i := range docs {
		body, err := docs[i].JSON()
		if err != nil {
			return err
		}
		_, err = d.api.rest.Patch(types.ApplyPatchType).AbsPath(paths[i]).Param("fieldManager", fieldManager).Body(body).DoRaw(ctx)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", docs[i].Kind, docs[i].Name, err)
		}
		say(docs[i].Kind + " " + docs[i].Name)
	}
	return nil
}

// appliedPath is where an object of a kind that Apply knows is; "" for others.
func appliedPath(doc *api.Document) string {
	switch doc.Kind {
	case "CustomResourceDefinition":
		return definitionsPath + doc.Name
	case "ValidatingAdmissionPolicy":
		return "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/" + doc.Name
	case "ValidatingAdmissionPolicyBinding":
		return "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/" + doc.Name
	}
	return ""
}

// askAgain is how often Run asks for definitions: somebody may install others,
// or remove them. Where there is no answer it asks sooner.
const askAgain, askSoon = 10 * time.Minute, 10 * time.Second

// Run keeps Notes up to date until ctx is done.
func (d *Definitions) Run(ctx context.Context) error {
	for {
		foreign, err := d.Foreign(ctx)
		if ctx.Err() != nil {
			return nil
		}
		pause := askAgain
		d.mu.Lock()
		switch {
		case err == nil && len(foreign) > 0:
			d.notes = []string{"the definitions of " + strings.Join(foreign, ", ") + " are not Weir's: " +
				"fields that they do not know are dropped before anybody sees them, and can't be told of"}
		case err == nil:
			d.notes = nil
		default:
			d.notes, pause = []string{"whose the definitions of policies are is not known: " + err.Error()}, askSoon
		}
		d.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// Notes says what people must know of the definitions; mostly nothing.
func (d *Definitions) Notes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.notes
}

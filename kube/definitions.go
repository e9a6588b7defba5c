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

	asks chan struct{} // somebody else may have installed others

	mu    sync.Mutex
	notes []string
}

// NewDefinitions returns Definitions that know Weir's own by a label.
func NewDefinitions(config *rest.Config, label, value string) (*Definitions, error) {
	client, err := newConditionsClient(config, "")
	if err != nil {
		return nil, err
	}
	return &Definitions{api: client, label: label, value: value, asks: make(chan struct{}, 1)}, nil
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

// ConflictError says that fields which are to be applied belong to somebody else,
// who gave them other values.
type ConflictError struct {
	// Objects are the objects, each with what the API server says: which fields,
	// and whose they are.
	Objects []string
}

func (e *ConflictError) Error() string {
	return "others have set fields to other values; nothing is applied: " + strings.Join(e.Objects, "; ")
}

// Apply applies YAML documents server-side as the manager weir, and says what it
// applied. It applies nothing if one of their names is taken by an object that is
// not Weir's: a *ForeignError. Nor does it if somebody else has set a field to
// another value, unless these are to be taken over (force): a *ConflictError. Fields
// that another manager set to the same value belong to both from then on.
func (d *Definitions) Apply(ctx context.Context, text []byte, force bool, say func(object string)) error {
	docs, errs := api.Documents("", text)
	if len(errs) > 0 {
		return errs[0]
	}
	bodies := make([][]byte, len(docs))
	var taken, conflicts []string
	for i := range docs {
		doc := &docs[i]
		path := appliedPath(doc)
		if path == "" {
			return fmt.Errorf("%s of %s is not known", doc.Kind, doc.APIVersion)
		}
		foreign, err := d.foreign(ctx, path)
		if err != nil {
			return fmt.Errorf("look for %s %s: %w", doc.Kind, doc.Name, err)
		}
		if foreign {
			taken = append(taken, doc.Name)
		}
		if bodies[i], err = doc.JSON(); err != nil {
			return err
		}
	}
	if len(taken) > 0 {
		slices.Sort(taken)
		return &ForeignError{slices.Compact(taken)}
	}
	// A dry run of all first: half of it is of no use. What else goes wrong may be
	// for lack of the others, so it counts when it is no dry run.
	for i := range docs {
		if err := d.apply(ctx, &docs[i], bodies[i], force, true); apierrors.IsConflict(err) {
			conflicts = append(conflicts, docs[i].Kind+" "+docs[i].Name+": "+err.Error())
		}
	}
	if len(conflicts) > 0 {
		return &ConflictError{conflicts}
	}
	for i := range docs {
		if err := d.apply(ctx, &docs[i], bodies[i], force, false); err != nil {
			return fmt.Errorf("apply %s %s: %w", docs[i].Kind, docs[i].Name, err)
		}
		say(docs[i].Kind + " " + docs[i].Name)
	}
	return nil
}

func (d *Definitions) apply(ctx context.Context, doc *api.Document, body []byte, force, dry bool) error {
	r := d.api.rest.Patch(types.ApplyPatchType).AbsPath(appliedPath(doc)).Param("fieldManager", fieldManager).Body(body)
	if force {
		r = r.Param("force", "true")
	}
	if dry {
		r = r.Param("dryRun", "All")
	}
	return r.Do(ctx).Error() // which, other than DoRaw, reads what the server says
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
// or remove them. Where there is no answer it asks sooner, and after Ask at once,
// but for a pause that many asks share.
const askAgain, askSoon, askPause = 10 * time.Minute, 10 * time.Second, time.Second

// Ask says that the definitions may be others now: see Cluster.Interrupted. It
// waits for nobody.
func (d *Definitions) Ask() {
	select {
	case d.asks <- struct{}{}:
	default:
	}
}

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
		case <-d.asks:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(askPause):
			}
		}
	}
}

// Notes says what people must know of the definitions; mostly nothing.
func (d *Definitions) Notes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.notes
}

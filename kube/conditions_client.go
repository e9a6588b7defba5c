package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// conditionsClient makes the requests of Conditions.
type conditionsClient struct {
	config   *rest.Config
	rest     *rest.RESTClient
	identity string
}

func newConditionsClient(config *rest.Config, identity string) (*conditionsClient, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = writes, writesAtOnce
	config.Timeout = 30 * time.Second
	config.WarningHandler = rest.NoWarnings{}
	raw := rest.CopyConfig(config)
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"}) // what errors are
	raw.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.UnversionedRESTClientFor(raw)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &conditionsClient{config: config, rest: client, identity: identity}, nil
}

// statusObject is an object as little as is needed of it.
type statusObject struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"`
	Metadata   statusMetadata   `json:"metadata"`
	Status     api.PolicyStatus `json:"status"`
}

type statusMetadata struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// find adds the conditions of all objects of a resource. A resource that the
// cluster does not have has none.
func (c *conditionsClient) find(ctx context.Context, r *resource, found map[policy.Object]told) error {
	for next := ""; ; {
		text, err := c.rest.Get().AbsPath(r.path()).Param("limit", strconv.Itoa(pageSize)).Param("continue", next).DoRaw(ctx)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", r, err)
		}
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []statusObject `json:"items"`
		}
		if err := json.Unmarshal(text, &page); err != nil {
			return fmt.Errorf("list %s: %w", r, err)
		}
		for _, o := range page.Items {
			key := policy.Object{Kind: r.kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}
			found[key] = told{o.Metadata.UID, o.Status.Conditions}
		}
		if next = page.Metadata.Continue; next == "" {
			return nil
		}
	}
}

// write makes these the object's conditions that are Weir's. An object of that
// name with another UID is left alone, and so is a condition that belongs to
// somebody else: both are conflicts.
func (c *conditionsClient) write(ctx context.Context, r *resource, key policy.Object, uid string, conditions []api.Condition) error {
	body, err := json.Marshal(statusObject{
		APIVersion: r.apiVersion(), Kind: r.kind,
		Metadata: statusMetadata{Namespace: key.Namespace, Name: key.Name, UID: uid},
		Status:   api.PolicyStatus{Conditions: conditions},
	})
	if err != nil {
		return err
	}
	path := "/apis/" + r.apiVersion() + "/" + r.plural + "/" + key.Name + "/status"
	if key.Namespace != "" {
		path = "/apis/" + r.apiVersion() + "/namespaces/" + key.Namespace + "/" + r.plural + "/" + key.Name + "/status"
	}
	err = c.rest.Patch(types.ApplyPatchType).AbsPath(path).Param("fieldManager", fieldManager).Body(body).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}

// longestNote is the most bytes of an event's text that the API takes.
const longestNote = 1024

// event tells an event. once: of equal ones only the first, as long as the API
// server keeps it; for objects that can't say themselves what they were told.
func (c *conditionsClient) event(ctx context.Context, key policy.Object, uid string, n note, once bool) error {
	now := time.Now()
	distinct := now.Format(time.RFC3339Nano)
	if once {
		distinct = ""
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{key.Kind, uid, n.reason, n.text, distinct}, "\n")))
	namespace := key.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events of objects without one are
	}
	kind := corev1.EventTypeNormal
	if n.warning {
		kind = corev1.EventTypeWarning
	}
	apiVersion := ""
	for _, r := range resources() {
		if r.kind == key.Kind {
			apiVersion = r.apiVersion()
		}
	}
	body, err := json.Marshal(&eventsv1.Event{
		TypeMeta:            metav1.TypeMeta{APIVersion: "events.k8s.io/v1", Kind: "Event"},
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: cut(key.Name, 200) + "." + hex.EncodeToString(sum[:8])},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: "weir", ReportingInstance: cut(c.identity, 128),
		Action: "Judge", Reason: n.reason, Type: kind, Note: cut(n.text, longestNote),
		Regarding: corev1.ObjectReference{
			APIVersion: apiVersion, Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, UID: types.UID(uid),
		},
	})
	if err != nil {
		return err
	}
	_, err = c.rest.Post().AbsPath("/apis/events.k8s.io/v1/namespaces/"+namespace+"/events").SetHeader("Content-Type", jsonText).Body(body).DoRaw(ctx)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create an event: %w", err)
	}
	return nil
}

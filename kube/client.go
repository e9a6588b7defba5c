package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// listLimit is how long a page may take.
const listLimit = time.Minute

const (
	protobuf = "application/vnd.kubernetes.protobuf"
	jsonText = "application/json"
)

// client asks for the objects of one kind.
type client struct {
	of    *resource
	items *rest.RESTClient
	// heads gives objects as no more than their metadata.
	heads  *rest.RESTClient
	counts *counts
}

// newClients returns a client for each resource. They share connections.
func newClients(config *rest.Config, of []*resource) ([]*client, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), metav1.AddMetaToScheme(scheme)); err != nil {
		return nil, err
	}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	config = rest.CopyConfig(config)
	config.QPS = -1 // there are few requests, and each waits for an answer
	config.WarningHandler = rest.NoWarnings{}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{next} })
	shared, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	var out []*client
	for _, r := range of {
		c := &client{of: r, counts: new(counts)}
		as := ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
		for _, how := range []struct {
			to     **rest.RESTClient
			codec  runtime.NegotiatedSerializer
			accept string
		}{
			{&c.items, kindCodec{codecs, r}, r.mediaTypes()},
			{&c.heads, codecs, protobuf + as + "," + jsonText + as},
		} {
			config := rest.CopyConfig(config)
			config.NegotiatedSerializer, config.AcceptContentTypes = how.codec, how.accept
			if *how.to, err = rest.UnversionedRESTClientForConfigAndClient(config, shared); err != nil {
				return nil, fmt.Errorf("connect to the API server: %w", err)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

func (r *resource) mediaTypes() string {
	if r.slim == nil {
		return jsonText
	}
	return protobuf + "," + jsonText
}

// kindCodec decodes what answers hold to items and pages of a resource.
type kindCodec struct {
	runtime.NegotiatedSerializer
	of *resource
}

func (k kindCodec) DecoderToVersion(d runtime.Decoder, v runtime.GroupVersioner) runtime.Decoder {
	d = k.NegotiatedSerializer.DecoderToVersion(d, v)
	if k.of.slim == nil {
		return textDecoder{d, k.of}
	}
	return slimDecoder{d, k.of.slim}
}

func (c *client) get(of *rest.RESTClient, o *metav1.ListOptions) *rest.Request {
	return of.Get().AbsPath(c.of.path()).VersionedParams(o, metav1.ParameterCodec)
}

// list returns a page of at most limit objects, up to date where it begins.
func (c *client) list(ctx context.Context, limit int64, next string) (*page, error) {
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	o, err := c.get(c.items, &metav1.ListOptions{Limit: limit, Continue: next}).Do(c.counts.in(ctx)).Get()
	if err != nil {
		return nil, c.inWords("list", err)
	}
	p, ok := o.(*page)
	if !ok {
		return nil, fmt.Errorf("list %s: the answer is no list", c.of)
	}
	return p, nil
}

// versions tells the version of every object there is, and that of the list.
func (c *client) versions(ctx context.Context) (of map[name]string, at string, err error) {
	of = map[name]string{}
	for o := (metav1.ListOptions{Limit: pageSize}); ; {
		var list metav1.PartialObjectMetadataList
		if err := c.get(c.heads, &o).Do(c.counts.in(ctx)).Into(&list); err != nil {
			return nil, "", c.inWords("list", err)
		}
		for i := range list.Items {
			m := &list.Items[i]
			of[name{m.Namespace, m.Name}] = m.ResourceVersion
		}
		if o.Continue = list.Continue; o.Continue == "" {
			return of, list.ResourceVersion, nil
		}
	}
}

// watch follows what changes after a version; with version "" it begins with
// everything there is and tells the end of that.
func (c *client) watch(ctx context.Context, version string, limit int64) (apiwatch.Interface, error) {
	o := metav1.ListOptions{ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &limit, Watch: true}
	if version == "" {
		all := true
		o.SendInitialEvents, o.ResourceVersionMatch = &all, metav1.ResourceVersionMatchNotOlderThan
	}
	w, err := c.get(c.items, &o).Watch(c.counts.in(ctx))
	if err != nil {
		return nil, c.inWords("watch", err)
	}
	return w, nil
}

// definitions are where CRDs are.
const definitions = "customresourcedefinitions.apiextensions.k8s.io"

// defined returns when the CRD of the resource is there, or another than it
// was; or when ctx ends.
func (c *client) defined(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	as := ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	w, err := c.heads.Get().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
		VersionedParams(&metav1.ListOptions{FieldSelector: "metadata.name=" + c.of.String(), Watch: true}, metav1.ParameterCodec).
		SetHeader("Accept", protobuf+as+","+jsonText+as).Watch(c.counts.in(ctx))
	switch {
	case apierrors.IsForbidden(err):
		return &deniedError{"watch", definitions, definitionRule(c.of), err}
	case err != nil:
		return noAnswer(fmt.Errorf("watch %s: %w", definitions, err))
	}
	defer w.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.ResultChan():
		return nil
	}
}

// deniedError says which right is missing.
type deniedError struct {
	verb, resource string
	rule           rbacv1.PolicyRule // of which one verb is missing
	err            error
}

func (e *deniedError) Error() string {
	names := ""
	if len(e.rule.ResourceNames) > 0 {
		names = fmt.Sprintf(", resourceNames: [%q]", e.rule.ResourceNames[0])
	}
	return fmt.Sprintf("the API server forbids to %s %s: the agent's ClusterRole lacks apiGroups: [%q], resources: [%q], verbs: [%q]%s",
		e.verb, e.resource, e.rule.APIGroups[0], e.rule.Resources[0], e.verb, names)
}

func (e *deniedError) Unwrap() error { return e.err }

// inWords adds to an error what was asked for. Errors of the API server stay
// what they are to package apierrors.
func (c *client) inWords(verb string, err error) error {
	if apierrors.IsForbidden(err) {
		return &deniedError{verb, c.of.String(), c.of.rule(), err}
	}
	return noAnswer(fmt.Errorf("%s %s: %w", verb, c.of, err))
}

// noAnswer leaves out of an error what was asked, if nobody answers anything.
func noAnswer(err error) error {
	if broken := (*url.Error)(nil); errors.As(err, &broken) {
		return fmt.Errorf("no answer from the API server: %w", broken.Err)
	}
	return err
}

// counts are what a kind's requests cost.
type counts struct {
	requests [2][len(statusClasses)]atomic.Uint64 // by list and watch, and class of status
	bytes    atomic.Uint64                        // of answers, uncompressed
}

// statusClasses of answers; the first is for none.
var statusClasses = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

type countsKey struct{}

// in makes requests under a context count. What client-go would log of them is
// told by their errors.
func (c *counts) in(ctx context.Context) context.Context {
	return context.WithValue(klog.NewContext(ctx, klog.Logger{}), countsKey{}, c)
}

// counting counts the requests that pass.
type counting struct{ next http.RoundTripper }

func (t counting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	c, ok := r.Context().Value(countsKey{}).(*counts)
	if !ok {
		return resp, err
	}
	verb, class := 0, 0
	if watches, _ := strconv.ParseBool(r.URL.Query().Get("watch")); watches {
		verb = 1
	}
	if err == nil {
		if class = resp.StatusCode / 100; class >= len(statusClasses) {
			class = 0
		}
		resp.Body = &countedBody{resp.Body, &c.bytes}
	}
	c.requests[verb][class].Add(1)
	return resp, err
}

type countedBody struct {
	io.ReadCloser
	bytes *atomic.Uint64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(uint64(n))
	return n, err
}

// WrappedRoundTripper lets client-go find what is below.
func (t counting) WrappedRoundTripper() http.RoundTripper { return t.next }

package kube

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeServer speaks as much of the API as a Cluster asks for, and does at
// command what a real one does when it is ill.
type fakeServer struct {
	*httptest.Server
	mu      sync.Mutex
	version int
	objects map[string]map[string]map[string]any // by plural and namespace/name
	events  []fakeEvent
	news    chan struct{}

	// refuse answers a request instead, if it returns a code other than 0.
	refuse    func(r *http.Request) (code int, reason string)
	noStreams bool
	silent    bool // no end of what was there is told
	oldest    int  // versions before it are not known any more
	cut       int  // watches that began before this count of cuts end
	requests  []string
}

type fakeEvent struct {
	version int
	plural  string
	kind    string // ADDED, ...
	object  map[string]any
}

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{objects: map[string]map[string]map[string]any{}, news: make(chan struct{}), version: 10}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	t.Cleanup(f.end)
	return f
}

// end ends all watches.
func (f *fakeServer) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut++
	f.tell()
}

func (f *fakeServer) tell() { close(f.news); f.news = make(chan struct{}) }

// with changes how the server behaves.
func (f *fakeServer) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// put writes an object; nil as object deletes it.
func (f *fakeServer) put(plural, name string, object map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	all := f.objects[plural]
	if all == nil {
		all = map[string]map[string]any{}
		f.objects[plural] = all
	}
	kind := "MODIFIED"
	switch old := all[name]; {
	case object == nil:
		kind, object = "DELETED", old
		delete(all, name)
	case old == nil:
		kind = "ADDED"
	}
	copied := map[string]any{}
	for k, v := range object {
		copied[k] = v
	}
	namespace, own, found := strings.Cut(name, "/")
	if !found {
		namespace, own = "", name
	}
	meta := map[string]any{"name": own, "resourceVersion": strconv.Itoa(f.version), "managedFields": []any{map[string]any{"manager": "x"}}}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	copied["metadata"] = meta
	if kind != "DELETED" {
		all[name] = copied
	}
	f.events = append(f.events, fakeEvent{f.version, plural, kind, copied})
	f.tell()
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	plural := parts[len(parts)-1]
	q := r.URL.Query()
	f.mu.Lock()
	f.requests = append(f.requests, r.URL.Path+"?"+r.URL.RawQuery)
	refuse, noStreams := f.refuse, f.noStreams
	f.mu.Unlock()
	if refuse != nil {
		if code, reason := refuse(r); code != 0 {
			fakeStatus(w, code, reason)
			return
		}
	}
	if strings.Contains(r.URL.Path, "cilium.io") {
		f.mu.Lock()
		served := f.objects[plural] != nil
		f.mu.Unlock()
		if !served {
			fakeStatus(w, http.StatusNotFound, "NotFound")
			return
		}
	}
	switch {
	case q.Get("watch") != "true" && q.Get("watch") != "1":
		kind, version := fakeKind(plural)
		kind += "List"
		if strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList") {
			kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
		}
		f.list(w, plural, kind, version, q.Get("limit"), q.Get("continue"))
	case q.Get("sendInitialEvents") == "true" && noStreams:
		fakeStatus(w, http.StatusUnprocessableEntity, "Invalid")
	default:
		f.watch(w, r, plural, q.Get("sendInitialEvents") == "true", q.Get("resourceVersion"))
	}
}

func fakeStatus(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"message":"as told"}`, reason, code)
}

func (f *fakeServer) list(w http.ResponseWriter, plural, kind, apiVersion, limit, next string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for n := range f.objects[plural] {
		names = append(names, n)
	}
	slices.Sort(names)
	from, _ := strconv.Atoi(next)
	to := len(names)
	if l, _ := strconv.Atoi(limit); l > 0 {
		to = min(to, from+l)
	}
	meta := map[string]any{"resourceVersion": strconv.Itoa(f.version)}
	if to < len(names) {
		meta["continue"] = strconv.Itoa(to)
	}
	items := []any{}
	for _, n := range names[min(from, to):to] {
		items = append(items, f.objects[plural][n])
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": kind, "apiVersion": apiVersion, "metadata": meta, "items": items})
}

func fakeKind(plural string) (kind, apiVersion string) {
	for _, r := range resources() {
		if r.plural == plural {
			return r.kind, r.apiVersion()
		}
	}
	return "CustomResourceDefinition", "apiextensions.k8s.io/v1"
}

func (f *fakeServer) watch(w http.ResponseWriter, r *http.Request, plural string, all bool, version string) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	kind, apiVersion := fakeKind(plural)
	send := func(event string, object map[string]any) {
		if object["kind"] == nil {
			object["kind"], object["apiVersion"] = kind, apiVersion
		}
		_ = enc.Encode(map[string]any{"type": event, "object": object})
		_ = flush.Flush()
	}
	f.mu.Lock()
	at, _ := strconv.Atoi(version)
	cut := f.cut
	if at != 0 && at < f.oldest {
		f.mu.Unlock()
		send("ERROR", map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"})
		return
	}
	if all {
		for _, o := range f.objects[plural] {
			send("ADDED", o)
		}
		at = f.version
		meta := map[string]any{"resourceVersion": strconv.Itoa(at)}
		if !f.silent {
			meta["annotations"] = map[string]any{"k8s.io/initial-events-end": "true"}
		}
		send("BOOKMARK", map[string]any{"metadata": meta})
	}
	f.mu.Unlock()
	for _ = flush.Flush(); ; {
		f.mu.Lock()
		for _, e := range f.events {
			if e.version > at && e.plural == plural {
				send(e.kind, e.object)
				at = e.version
			}
		}
		news, over := f.news, f.cut != cut
		f.mu.Unlock()
		if over {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-news:
		}
	}
}

// asked counts the requests that contain all of the parts.
func (f *fakeServer) asked(parts ...string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		ok := true
		for _, p := range parts {
			ok = ok && strings.Contains(r, p)
		}
		if ok {
			n++
		}
	}
	return n
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/api"
)

// Conditions tells the people who write policies what became of them: in the
// conditions of the policies that have a status, and with events. Every agent
// knows; the one that holds a Lease writes, and only what is another than what
// is there.
type Conditions struct {
	o     ConditionsOptions
	api   *conditionsClient
	lease *watchedLease
	queue workqueue.TypedRateLimitingInterface[policy.Object]

	mu      sync.Mutex
	objects map[policy.Object]any // policies and groups, as they were noted
	leading bool
	// told is what was found or written since this agent leads.
	told map[policy.Object]told
}

// told is what an object says of itself.
type told struct {
	uid        string
	conditions []api.Condition
}

// ConditionsOptions says who writes, and where.
type ConditionsOptions struct {
	Config *rest.Config
	// Namespace is where the Lease is: Weir's own.
	Namespace string
	// Identity is this agent's, as no other's: the name of its pod or node.
	Identity string
	Log      *slog.Logger
	// Doubts, if any, are told of as well.
	Doubts *Doubts

	// Lease is for how long the agent that writes asks for it, six times within
	// that. Gone without a word it holds the others back for so long, and until
	// one of them has looked again: at most 1.8 times that. 0: half a minute.
	Lease time.Duration
}

// LeaseName is the Lease of the agent that writes conditions.
const LeaseName = "weir-conditions"

// fieldManager is whose the conditions are at the API server.
const fieldManager = "weir"

const (
	// writes is how many requests a second an agent makes, beyond a few.
	writes, writesAtOnce = 10, 20
	// What fails is tried again after the first, at the latest after the second.
	retryFirst, retryLast = time.Second, 5 * time.Minute
)

// ConditionRules are the rights that Conditions need: for the whole cluster,
// and in the namespace of the Lease.
func ConditionRules() (cluster, namespace []rbacv1.PolicyRule) {
	rule := func(group string, verbs []string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
	}
	var plurals, status []string
	for _, r := range withStatus() {
		plurals, status = append(plurals, r.plural), append(status, r.plural+"/status")
	}
	held := rule("coordination.k8s.io", []string{"get", "update", "watch"}, "leases")
	held.ResourceNames = []string{LeaseName}
	return []rbacv1.PolicyRule{
		rule("cilium.io", []string{"list"}, plurals...),
		rule("cilium.io", []string{"patch"}, status...),
		rule("events.k8s.io", []string{"create"}, "events"),
	}, []rbacv1.PolicyRule{rule("coordination.k8s.io", []string{"create"}, "leases"), held}
}

// withStatus are the resources whose objects have conditions.
func withStatus() []*resource {
	var out []*resource
	for _, r := range resources() {
		if r.kind == api.KindCiliumPolicy || r.kind == api.KindClusterwide {
			out = append(out, r)
		}
	}
	return out
}

// NewConditions returns Conditions that write nothing before they run.
func NewConditions(o ConditionsOptions) (*Conditions, error) {
	if o.Namespace == "" || o.Identity == "" {
		return nil, errors.New("conditions need a namespace and an identity")
	}
	if o.Lease == 0 {
		o.Lease = 30 * time.Second
	}
	client, err := newConditionsClient(o.Config, o.Identity)
	if err != nil {
		return nil, err
	}
	lease, err := newWatchedLease(client.config, o.Namespace, o.Identity, o.Lease, o.Log)
	if err != nil {
		return nil, err
	}
	c := &Conditions{
		o: o, api: client, lease: lease,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[policy.Object](retryFirst, retryLast)),
		objects: map[policy.Object]any{},
	}
	if d := o.Doubts; d != nil {
		d.mu.Lock()
		d.changed = c.again
		d.mu.Unlock()
	}
	return c, nil
}

// again looks at an object again that has not changed itself.
func (c *Conditions) again(key policy.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leading {
		c.queue.Add(key)
	}
}

// After returns a sink that notes what next has taken.
func (c *Conditions) After(next Sink) Sink { return notingSink{next, c.Note} }

// notingSink has somebody note what the next sink has taken.
type notingSink struct {
	next Sink
	note func([]policy.Change)
}

func (s notingSink) Submit(ctx context.Context, changes []policy.Change) error {
	if err := s.next.Submit(ctx, changes); err != nil {
		return err
	}
	s.note(changes)
	return nil
}

// Note takes what has changed; what is no policy and no group of addresses is
// passed over. It waits for nobody, and may be called from anywhere.
func (c *Conditions) Note(changes []policy.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range changes {
		switch change.Value.(type) {
		case nil:
			delete(c.objects, change.Object)
			delete(c.told, change.Object)
		case *api.Policy, *api.CIDRGroup:
			c.objects[change.Object] = change.Value
			if c.leading {
				c.queue.Add(change.Object)
			}
		}
	}
}

// Run asks for the Lease, and writes while it has it, until ctx is done. It
// runs once.
func (c *Conditions) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(c.o.Log.Handler()))
	var writing sync.WaitGroup
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: c.lease, LeaseDuration: c.o.Lease, RenewDeadline: c.o.Lease * 2 / 3, RetryPeriod: c.o.Lease / 6,
		Name: LeaseName, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				writing.Go(func() { c.lead(ctx) })
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("write conditions: %w", err)
	}
	var worker sync.WaitGroup
	worker.Go(func() { c.lease.follow(ctx) })
	worker.Go(func() {
		for c.next(ctx) {
		}
	})
	for ctx.Err() == nil {
		elector.Run(ctx) // returns when the Lease is lost
		writing.Wait()
	}
	c.queue.ShutDown()
	worker.Wait()
	return nil
}

// lead makes this agent the one that writes, until ctx is done.
func (c *Conditions) lead(ctx context.Context) {
	found, err := c.findAll(ctx)
	if err != nil {
		return // ctx is done
	}
	if d := c.o.Doubts; d != nil {
		// Else what an agent before this one was told of would be taken back.
		select {
		case <-ctx.Done():
			return
		case <-d.first:
		}
	}
	c.o.Log.Info("this agent writes the conditions of policies")
	c.mu.Lock()
	c.leading, c.told = true, found
	for key := range c.objects {
		c.queue.Add(key)
	}
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	c.leading, c.told = false, nil
	c.mu.Unlock()
}

// findAll reads what the policies say of themselves.
func (c *Conditions) findAll(ctx context.Context) (map[policy.Object]told, error) {
	pause := retryFirst
	for {
		found := map[policy.Object]told{}
		var err error
		for _, r := range withStatus() {
			err = errors.Join(err, c.api.find(ctx, r, found))
		}
		if err == nil || ctx.Err() != nil {
			return found, ctx.Err()
		}
		c.o.Log.Warn("reading the conditions of policies; tried again", "error", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, retryLast)
	}
}

// next tells what is to be told of one object. It returns false at the end.
func (c *Conditions) next(ctx context.Context) bool {
	key, end := c.queue.Get()
	if end {
		return false
	}
	defer c.queue.Done(key)
	err := c.tell(ctx, key)
	switch {
	case err == nil || ctx.Err() != nil:
		c.queue.Forget(key)
		return true
	case c.queue.NumRequeues(key) == 0:
		c.o.Log.Warn("telling what became of a policy; tried again", "object", Name(key), "error", err)
	}
	c.queue.AddRateLimited(key)
	return true
}

func (c *Conditions) tell(ctx context.Context, key policy.Object) error {
	c.mu.Lock()
	leading, value, before := c.leading, c.objects[key], c.told[key]
	c.mu.Unlock()
	v, ok := verdictOf(value)
	if !leading || !ok {
		return nil
	}
	for _, e := range c.o.Doubts.of(key) {
		v.doubtful = append(v.doubtful, inWords(e))
	}
	if before.uid != v.uid {
		before = told{uid: v.uid} // another object of that name
	}
	want := stamped(v.conditions(), before.conditions, metav1.Now())
	if sameConditions(want, before.conditions) {
		return nil
	}
	r := statusOf(key.Kind)
	if r != nil {
		if err := c.api.write(ctx, r, key, v.uid, want); apierrors.IsNotFound(err) {
			return nil // it is gone
		} else if err != nil {
			return err
		}
	}
	c.mu.Lock()
	if c.told != nil {
		c.told[key] = told{v.uid, want}
	}
	c.mu.Unlock()
	// Events are told once, also if that fails: the next change brings the next.
	for _, n := range v.notes(before.refused()) {
		if err := c.api.event(ctx, key, v.uid, n, r == nil); err != nil && ctx.Err() == nil {
			c.o.Log.Warn("telling an event of a policy", "object", Name(key), "error", err)
		}
	}
	return nil
}

func (t told) refused() bool {
	for _, c := range t.conditions {
		if c.Type == api.ConditionValid {
			return c.Status == metav1.ConditionFalse
		}
	}
	return false
}

func statusOf(kind string) *resource {
	for _, r := range withStatus() {
		if r.kind == kind {
			return r
		}
	}
	return nil
}

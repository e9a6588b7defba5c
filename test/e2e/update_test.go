package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// load is what goes on all the time, and may not fail once.
type load struct {
	name   string
	done   atomic.Int64
	failed atomic.Int64
	worst  atomic.Int64 // nanoseconds
	first  atomic.Pointer[string]
}

// run does one thing after the other until ctx ends.
func (l *load) run(ctx context.Context, every time.Duration, one func() error) {
	for ctx.Err() == nil {
		began := time.Now()
		err := one()
		if err != nil && ctx.Err() == nil {
			l.failed.Add(1)
			said := fmt.Sprintf("%s: %v", time.Now().Format("15:04:05.000"), err)
			l.first.CompareAndSwap(nil, &said)
		} else if err == nil {
			l.done.Add(1)
		}
		if took := time.Since(began).Nanoseconds(); took > l.worst.Load() {
			l.worst.Store(took)
		}
		time.Sleep(every)
	}
}

const updatePolicy = httpPolicy + `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: echo, namespace: http}
spec:
  podSelector: {matchLabels: {app: echo}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
`

// rollingUpdate replaces the DaemonSet's image while everything is in use.
func (d *deployed) rollingUpdate() {
	web, echo, client, asker := d.pod("http", "web"), d.pod("http", "echo"), d.pod("http", "client"), d.pod("names", "client")
	d.apply(updatePolicy)
	d.apply(namesPolicy)
	d.enforced()

	ctx, stop := context.WithCancel(d.t.Context())
	defer stop()
	var all sync.WaitGroup
	var loads []*load
	start := func(name string, every time.Duration, one func() error) {
		l := &load{name: name}
		loads = append(loads, l)
		all.Go(func() { l.run(ctx, every, one) })
	}
	for i := range 4 {
		start(fmt.Sprint("HTTP, kept alive, ", i), 5*time.Millisecond, keptAlive(client.space, web.web()))
	}
	start("HTTP, a connection each", 20*time.Millisecond, func() error { return want200(client.get(web.web(), "/hostname")) })
	start("HTTP denied", 50*time.Millisecond, func() error {
		if status, err := client.get(web.web(), "/clientip"); status != http.StatusForbidden {
			return fmt.Errorf("status %d, %w", status, err)
		}
		return nil
	})
	start("TCP, a connection each", 20*time.Millisecond, func() error { return want200(client.get(echo.web(), "/hostname")) })
	start("TCP, kept alive", 5*time.Millisecond, keptAlive(client.space, echo.web()))
	start("DNS", 10*time.Millisecond, func() error {
		_, err := asker.lookup(goodName)
		return err
	})
	start("scrapes", 50*time.Millisecond, func() error { return want200(d.node.get("127.0.0.1:9964", "/metrics")) })
	time.Sleep(2 * time.Second)

	for _, image := range []string{"weirnet/weir:next", "weirnet/weir:dev"} {
		began := time.Now()
		d.kubectl("", "-n", "weir-system", "set", "image", "daemonset/weir", "agent="+image, "proxy="+image)
		d.kubectl("", "-n", "weir-system", "rollout", "status", "daemonset/weir", "--timeout=150s")
		d.t.Logf("rolled to %s in %v", image, time.Since(began).Round(100*time.Millisecond))
		// The old pod is only on its way out when the new one is ready.
		d.kubectl("", "-n", "weir-system", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=weir,pod-template-generation="+d.generation(1), "--timeout=90s")
		d.enforced()
		if n := d.kubectl("", "-n", "weir-system", "get", "pods", "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}"); n != "0 0" {
			d.t.Errorf("containers were started again: %s times", n)
		}
	}
	time.Sleep(time.Second)
	stop()
	all.Wait()
	for _, l := range loads {
		d.t.Logf("%-26s %6d done, %d failed, the longest %v", l.name, l.done.Load(), l.failed.Load(), time.Duration(l.worst.Load()).Round(time.Millisecond))
		if n := l.failed.Load(); n > 0 {
			d.t.Errorf("%s: %d failed, the first at %s", l.name, n, *l.first.Load())
		}
		if l.done.Load() < 20 {
			d.t.Errorf("%s: only %d were done", l.name, l.done.Load())
		}
	}
}

// generation is the DaemonSet's present one, or one so many before.
func (d *deployed) generation(back int) string {
	var now int
	text := d.kubectl("", "-n", "weir-system", "get", "daemonset", "weir", "--output=jsonpath={.metadata.generation}")
	if _, err := fmt.Sscan(text, &now); err != nil {
		d.t.Fatal(err)
	}
	return fmt.Sprint(now - back)
}

func want200(status int, err error) error {
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	return err
}

// keptAlive asks on one connection all the time; where it was lost it counts,
// and another is made.
func keptAlive(s *space, address string) func() error {
	var c net.Conn
	var r *bufio.Reader
	return func() error {
		if c == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			var err error
			if c, err = s.dial(ctx, "tcp", address); err != nil {
				c = nil
				return fmt.Errorf("connect: %w", err)
			}
			r = bufio.NewReader(c)
		}
		err := want200(ask(c, r, http.MethodGet, address, "/hostname"))
		if err != nil {
			_ = c.Close()
			c = nil
			if err == io.EOF {
				err = fmt.Errorf("the connection was closed")
			}
		}
		return err
	}
}

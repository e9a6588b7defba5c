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

// load is what goes on all the time, one after the other.
type load struct {
	name   string
	done   atomic.Int64
	failed atomic.Int64
	worst  atomic.Int64 // nanoseconds
	first  atomic.Pointer[string]
}

// run does one thing after the other until ctx ends, which interrupts none.
func (l *load) run(ctx context.Context, every time.Duration, one func() error) {
	for ctx.Err() == nil {
		began := time.Now()
		err := one()
		if err != nil {
			l.failed.Add(1)
			said := fmt.Sprintf("%s: %v", time.Now().Format("15:04:05.000"), err)
			l.first.CompareAndSwap(nil, &said)
		} else {
			l.done.Add(1)
		}
		if took := time.Since(began).Nanoseconds(); took > l.worst.Load() {
			l.worst.Store(took)
		}
		time.Sleep(every)
	}
}

// loads are those of a story.
type loads struct {
	d     *deployed
	ctx   context.Context
	stop  context.CancelFunc
	all   sync.WaitGroup
	list  []*load
	began time.Time
}

func (d *deployed) loads() *loads {
	ctx, stop := context.WithCancel(d.t.Context())
	return &loads{d: d, ctx: ctx, stop: stop, began: time.Now()}
}

// start begins one more of them.
func (l *loads) start(name string, every time.Duration, one func() error) {
	load := &load{name: name}
	l.list = append(l.list, load)
	l.all.Go(func() { load.run(l.ctx, every, one) })
}

// end ends them, and tells what was done and how often each may have failed: as
// often as allowed says, of those that it does not name never.
func (l *loads) end(allowed map[string]int64) {
	d := l.d
	d.t.Helper()
	l.stop()
	l.all.Wait()
	took := time.Since(l.began)
	d.t.Logf("in %v:", took.Round(100*time.Millisecond))
	for _, one := range l.list {
		n, failed := one.done.Load(), one.failed.Load()
		d.t.Logf("%-28s %6d done, %d failed, the longest %v", one.name, n, failed, time.Duration(one.worst.Load()).Round(time.Millisecond))
		if failed > 0 {
			d.t.Logf("%-28s the first failed at %s", "", *one.first.Load())
		}
		if failed > allowed[one.name] {
			d.t.Errorf("%s: %d failed, may %d", one.name, failed, allowed[one.name])
		}
		// Else it was no load.
		if want := int64(took.Seconds() / 2); n < want {
			d.t.Errorf("%s: only %d were done, want %d", one.name, n, want)
		}
	}
}

func want200(status int, err error) error {
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	return err
}

// never200 is for what no rule allows. Where it gets no answer at all, that is as
// good.
func never200(status int, err error) error {
	if err == nil && status == http.StatusOK {
		return fmt.Errorf("what no rule allows was answered")
	}
	return nil
}

// keptAlive asks on one connection all the time; where it was lost it counts,
// and another is made.
func keptAlive(s *space, address string) func() error {
	var c net.Conn
	var r *bufio.Reader
	return func() error {
		if c == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			var err error
			if c, err = s.dial(ctx, "tcp", address); err != nil {
				c = nil
				return fmt.Errorf("connect: %w", err)
			}
			r = bufio.NewReader(c)
		}
		status, _, err := ask(c, r, address, "/hostname")
		if err = want200(status, err); err != nil {
			_ = c.Close()
			c = nil
			if err == io.EOF {
				err = fmt.Errorf("the connection was closed")
			}
		}
		return err
	}
}

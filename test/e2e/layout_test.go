package e2e

import (
	"fmt"
	"net"
	"time"
)

// anotherLayout updates to an image to which every table's layout is another, and
// back to the first: nothing that is learned or counted in the kernel is shared.
// What is allowed goes on, and what is not never passes. What can't be carried
// over are the connections that the proxy has: they are reset, once each time,
// and whoever connects again is served.
func (d *deployed) anotherLayout() {
	web, echo, client, other := d.pod("http", "web"), d.pod("http", "echo"), d.pod("http", "client"), d.pod("http", "other")
	asker, good := d.pod("names", "client"), net.JoinHostPort(goodAddress, "80")
	d.apply(updatePolicy)
	d.apply(namesPolicy)
	d.enforced()
	if _, err := asker.lookup(goodName); err != nil {
		d.t.Fatal(err)
	}
	before := d.tables()

	l := d.loads()
	defer l.stop()
	const alive = "HTTP, kept alive"
	l.start(alive, 5*time.Millisecond, keptAlive(client.space, web.web()))
	l.start("HTTP, a connection each", 20*time.Millisecond, func() error { return want200(client.get(web.web(), "/hostname")) })
	l.start("TCP, kept alive", 5*time.Millisecond, keptAlive(client.space, echo.web()))
	l.start("TCP, a connection each", 20*time.Millisecond, func() error { return want200(client.get(echo.web(), "/hostname")) })
	l.start("a name's address", 20*time.Millisecond, func() error { return want200(asker.get(good, "/")) })
	l.start("DNS", 20*time.Millisecond, func() error { return asker.ask(goodName) })
	l.start("HTTP denied", 20*time.Millisecond, func() error { return never200(client.get(web.web(), "/clientip")) })
	for what, address := range map[string]string{"another client, HTTP": web.web(), "another client, TCP": echo.web()} {
		for range 4 { // each waits for its time to be up
			l.start(what, 0, func() error {
				if other.connects(address) {
					return fmt.Errorf("connected")
				}
				return nil
			})
		}
	}
	l.start("another name's address", 0, func() error {
		if asker.connects(net.JoinHostPort(otherAddress, "80")) {
			return fmt.Errorf("connected")
		}
		return nil
	})
	time.Sleep(2 * time.Second)
	d.rollTo("other", time.Minute)
	if now := d.tables(); now == before {
		d.t.Errorf("the layout is the same: %s", now)
	}
	time.Sleep(2 * time.Second)
	d.rollTo("dev", time.Minute)
	if now := d.tables(); now != before {
		d.t.Errorf("the tables are %s, were %s", now, before)
	}
	time.Sleep(2 * time.Second)
	l.end(map[string]int64{alive: 2})
}

// tables are the kernel's, on the first node.
func (d *deployed) tables() string {
	out, err := d.inNode("ls", "/sys/fs/bpf/weir/weir/maps", "/sys/fs/bpf/weir/weir/services")
	if err != nil || out == "" {
		d.t.Fatal(out, err)
	}
	return out
}

// ask looks a name up as a resolver does, which asks again.
func (s *space) ask(name string) error {
	var err error
	for range 3 {
		if _, err = s.lookup(name); err == nil {
			return nil
		}
	}
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// showShop shows who is there.
func (d *demo) showShop() {
	d.screen.heading("The shop")
	for _, p := range []struct{ name, is string }{
		{"frontend", "what the world sees, by port 30080 of the node"},
		{"api", "products and orders, over HTTP"},
		{"db", "the api's database"},
		{"prometheus", "scrapes metrics, from another namespace"},
		{"worker", "calls an API and a content network, by name"},
		{"dns", "the cluster's DNS"},
		{"world", "beyond a router; pods reach it with the node's address"},
	} {
		place := d.places[p.name]
		d.screen.say(fmt.Sprintf("  %s %-28s  %s", d.screen.paint(paintBold, fit(place.title, 11)), addresses(place),
			d.screen.paint(paintDim, strings.TrimSpace(p.is))))
	}
	d.screen.say("\n  " + d.screen.paint(paintDim, "netpol db · cnp api, frontend, worker · ccnp no-world: "+filepath.Join(d.dir, "objects")))
}

// actRequests is the first act.
func (d *demo) actRequests(ctx context.Context) error {
	d.screen.heading("1  Who may ask whom for what")
	for _, a := range demoAsks() {
		if _, err := d.ask(ctx, a, nil); err != nil {
			return err
		}
	}
	return nil
}

// actChange edits a policy while a connection is open.
func (d *demo) actChange(ctx context.Context) error {
	d.screen.heading("3  A policy changes while a connection is open")
	client := d.newKeepAlive("frontend")
	defer client.CloseIdleConnections()
	const api = "CiliumNetworkPolicy shop/api"
	first, err := d.ask(ctx, demoAsk{from: "frontend", to: "api", verb: "GET", path: "/products/7", want: "200", by: api}, client)
	if err != nil {
		return err
	}
	if _, err = d.ask(ctx, demoAsk{from: "frontend", to: "api", verb: "GET", path: "/reviews/7", want: "403", by: api}, client); err != nil {
		return err
	}
	path := filepath.Join(d.dir, "objects", "api.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("edit a policy: %w", err)
	}
	began := time.Now()
	edited := strings.Replace(string(text), "/products(", "/(products|reviews)(", 1)
	if err := d.weir.Objects.Write("api.yaml", edited); err != nil {
		return err
	}
	if err := d.weir.Wait(ctx); err != nil {
		return err
	}
	d.screen.say("\n  " + d.screen.paint(paintYellow, fmt.Sprintf("api.yaml: path /products… becomes /(products|reviews)…, enforced %.0f ms later",
		float64(time.Since(began).Microseconds())/1000)) + "\n")
	second, err := d.ask(ctx, demoAsk{from: "frontend", to: "api", verb: "GET", path: "/reviews/7", want: "200", by: api}, client)
	if err != nil {
		return err
	}
	if first.Connection != second.Connection {
		r := &d.results[len(d.results)-1]
		r.problems = append(r.problems, "it was not the same connection")
		d.screen.say("      " + d.screen.paint(paintRed, "it was not the same connection"))
	} else {
		d.screen.say("      " + d.screen.paint(paintDim, "(on the connection that was open all the time)"))
	}
	return d.weir.Objects.Write("api.yaml", string(text))
}

// actKill kills first the proxy, then the agent.
func (d *demo) actKill(ctx context.Context) error {
	d.screen.heading("4  kill -9")
	const api, db = "CiliumNetworkPolicy shop/api", "NetworkPolicy shop/db"
	pids := d.weir.ProxyPids()
	if len(pids) == 0 {
		return fmt.Errorf("no proxy is running")
	}
	killed := time.Now()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill the proxy: %w", err)
		}
	}
	back, err := d.untilAnswered(ctx, killed)
	if err != nil {
		return err
	}
	d.screen.say("\n  " + d.screen.paint(paintYellow, fmt.Sprintf("the proxy is killed; requests are answered again %.0f ms later, by a new one",
		float64(back.Microseconds())/1000)) + "\n")
	for _, a := range []demoAsk{
		{from: "frontend", to: "api", verb: "GET", path: "/products", want: "200", by: api},
		{from: "frontend", to: "api", verb: "DELETE", path: "/products/42", want: "403", by: api},
	} {
		if _, err := d.ask(ctx, a, nil); err != nil {
			return err
		}
	}
	d.weir.Agent().Kill()
	_ = d.records.stop()
	d.screen.say("\n  " + d.screen.paint(paintYellow, "the agent is killed: nobody is left to tell of flows, the kernel and the proxy go on") + "\n")
	for _, a := range []demoAsk{
		{from: "frontend", to: "api", verb: "GET", path: "/products", want: "200"},
		{from: "frontend", to: "api", verb: "DELETE", path: "/products/42", want: "403"},
		{from: "frontend", to: "db", verb: "connect", want: demoNothing},
		{from: "worker", to: "dns", verb: demoResolve, path: "img8.cdn.example.test", want: demoResolved},
		{from: "worker", to: "img8.cdn.example.test", verb: "connect", want: demoConnected},
		{from: "worker", to: "dns", verb: demoResolve, path: "www.example.test", want: demoRefused},
	} {
		if err := d.askUnseen(ctx, a); err != nil {
			return err
		}
	}
	if err := d.screen.step("the next agent takes over", func() error { return d.startAgent(ctx) }); err != nil {
		return err
	}
	for _, a := range []demoAsk{
		{from: "frontend", to: "api", verb: "GET", path: "/products", want: "200", by: api},
		{from: "frontend", to: "db", verb: "connect", want: demoNothing, by: db},
	} {
		if _, err := d.ask(ctx, a, nil); err != nil {
			return err
		}
	}
	return nil
}

// untilAnswered asks for something that is allowed until it is had.
func (d *demo) untilAnswered(ctx context.Context, since time.Time) (time.Duration, error) {
	a := demoAsk{from: "frontend", to: "api", verb: "GET", path: "/products"}
	to := netip.AddrPortFrom(d.places[a.to].addrs[0], d.places[a.to].port)
	for time.Since(since) < 10*time.Second {
		client := d.places[a.from].HTTPClient(250 * time.Millisecond)
		status, _, err := a.request(ctx, client, to)
		client.CloseIdleConnections()
		if err == nil && status == "200" {
			return time.Since(since), nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, errors.New("no request was answered for 10 s after the proxy's death")
}

package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

//go:embed configs
var configs embed.FS

// configValues is what the configuration templates are filled with.
type configValues struct {
	Dir, Name   string
	Workers     int
	Files       int // descriptors a process may have
	HalfFiles   int // pairs of them, less a few
	Connections int
	Origin      netip.Addr
	OriginPort  int
	Ports       []int
	Sets        []ruleSet
	Names       int // of a DNS zone
}

// NameNumbers are 1 to Names.
func (v configValues) NameNumbers() []int {
	n := make([]int, v.Names)
	for i := range n {
		n[i] = i + 1
	}
	return n
}

// writeConfig fills a template into dir and returns the file's path.
func writeConfig(dir, tmpl, file string, v configValues) (string, error) {
	t, err := template.New(tmpl).Funcs(template.FuncMap{
		"div": func(a, b int) int { return a / b }, "mod": func(a, b int) int { return a%b + 1 },
	}).ParseFS(configs, "configs/"+tmpl)
	if err != nil {
		return "", fmt.Errorf("read template %s: %w", tmpl, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return "", fmt.Errorf("fill template %s: %w", tmpl, err)
	}
	path := filepath.Join(dir, file)
	return path, os.WriteFile(path, b.Bytes(), 0o644)
}

// startOrigin runs the HTTP server in the node's server pod.
func startOrigin(n *node, dir string, files int) (*process, error) {
	if err := os.WriteFile(filepath.Join(dir, "1MiB"), bytes.Repeat([]byte("0123456789abcdef"), largeItem/16), 0o644); err != nil {
		return nil, err
	}
	name := "origin-" + n.name
	conf, err := writeConfig(dir, "origin.nginx.conf", name+".conf", configValues{Dir: dir, Name: name, Files: files,
		Connections: files, Ports: []int{l4Port, oneRulePort, hundredPort, thousandPort}})
	if err != nil {
		return nil, err
	}
	return start(n.server().ns, dir, name, nil, "nginx", "-c", conf, "-p", dir)
}

// rival is another proxy with the same rules, asked as an explicit proxy.
type rival struct {
	name string
	tmpl string
	argv func(conf string, workers int) []string
}

func rivals(envoy string) []rival {
	return []rival{
		{"nginx", "nginx.conf", func(conf string, _ int) []string {
			return []string{"nginx", "-c", conf, "-p", filepath.Dir(conf)}
		}},
		{"haproxy", "haproxy.cfg", func(conf string, _ int) []string {
			return []string{"haproxy", "-db", "-f", conf}
		}},
		{"envoy", "envoy.yaml", func(conf string, workers int) []string {
			return []string{envoy, "-c", conf, "--concurrency", fmt.Sprint(workers), "--disable-hot-restart", "-l", "error"}
		}},
	}
}

// startRival runs a rival in the node's own namespace, between the two pods,
// on ports of its own (its rule sets' ports plus offset).
func startRival(r rival, n *node, dir string, workers, files, offset int) (*process, error) {
	sets := ruleSets()
	for i := range sets {
		sets[i].Port += offset
	}
	conf, err := writeConfig(dir, r.tmpl, r.name+filepath.Ext(r.tmpl), configValues{
		Dir: dir, Name: r.name, Workers: workers, Files: files, HalfFiles: files/2 - 100, Connections: files,
		Origin: n.server().addr, OriginPort: l4Port, Sets: sets,
	})
	if err != nil {
		return nil, err
	}
	return start(n.name, dir, r.name, nil, r.argv(conf, workers)...)
}

// checkVerdicts makes sure that what will be measured is what is meant: the
// request that the last rule allows passes, one that no rule allows is refused.
// It waits for a server that is starting.
func checkVerdicts(ctx context.Context, from pod, addr netip.AddrPort, rulePort int, enforced bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	url := "http://" + addr.String()
	var err error
	for ctx.Err() == nil {
		var allowed, denied string
		if allowed, err = status(ctx, from, url+request(rulePort, smallItem)); err == nil {
			denied, err = status(ctx, from, url+"/not/in/any/rule")
		}
		want := fmt.Sprint(http.StatusForbidden)
		if !enforced {
			want = fmt.Sprint(http.StatusOK)
		}
		switch {
		case err != nil:
		case allowed != fmt.Sprint(http.StatusOK):
			err = fmt.Errorf("ask %s: the allowed request was answered %s", addr, allowed)
		case denied != want:
			err = fmt.Errorf("ask %s: the other request was answered %s, not %s", addr, denied, want)
		default:
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return err
}

func status(ctx context.Context, from pod, url string) (string, error) {
	out, err := run(ctx, from.ns, "curl", "-s", "-o", os.DevNull, "-m", "3", "-w", "%{http_code}", url)
	return strings.TrimSpace(string(out)), err
}

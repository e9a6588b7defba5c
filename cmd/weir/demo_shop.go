package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/examples"
	"github.com/weirnet/weir/test/node"
)

// The node's port that leads to the frontend.
const demoNodePort = 30080

// demoPlace is where requests come from and go to.
type demoPlace struct {
	*node.Netns
	title string
	addrs []netip.Addr
	port  uint16    // 0: it serves nothing
	pod   *node.Pod // nil: the node or the world
	runs  string    // what serves there, as the container's image
}

// build makes the node, and the pods that examples/shop/pods.yaml describes.
func (d *demo) build(ctx context.Context) error {
	d.dir = demoDir(d.name)
	objects := filepath.Join(d.dir, "objects")
	if err := os.MkdirAll(objects, 0o755); err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	if err := copyFiles(examples.Shop, objects); err != nil {
		return fmt.Errorf("write the demo's objects: %w", err)
	}
	var err error
	if d.network, err = node.NewNetwork(node.NetworkOptions{Name: d.name}); err != nil {
		return err
	}
	if d.node, err = d.network.AddNode(node.NodeOptions{Name: "node1", RPFilter: 1, DropInvalid: true}); err != nil {
		return err
	}
	d.places = map[string]*demoPlace{
		"world": {Netns: d.network.Outside, title: "the world", addrs: d.network.OutsideAddrs(), port: 80, runs: "nginx"},
		"node":  {Netns: d.node.Host, title: "the node", addrs: d.node.Addrs()},
	}
	if err := (node.Objects{Dir: objects}).PutNode(d.node); err != nil {
		return err
	}
	if err := d.addPods(objects); err != nil {
		return err
	}
	if err := d.addNames(ctx); err != nil {
		return err
	}
	return d.node.Forward(ctx, "tcp", demoNodePort, d.places["frontend"].pod, d.places["frontend"].port, false)
}

// addPods makes the pods of pods.yaml and replaces that file by what a cluster
// would say of them: with node, addresses and phase. One of two is bridged.
func (d *demo) addPods(objects string) error {
	path := filepath.Join(objects, "pods.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the demo's pods: %w", err)
	}
	var out bytes.Buffer
	for i, document := range strings.Split(string(text), "\n---\n") {
		var pod corev1.Pod
		if err := yaml.Unmarshal([]byte(document), &pod); err != nil {
			return fmt.Errorf("read the demo's pods: %w", err)
		}
		if pod.Kind != "Pod" {
			fmt.Fprintf(&out, "%s\n---\n", document)
			continue
		}
		p, err := d.node.AddPod(&pod, node.Wiring(i%2))
		if err != nil {
			return err
		}
		place := &demoPlace{Netns: p.Netns, title: pod.Name, addrs: p.Addrs, pod: p, runs: pod.Spec.Containers[0].Image}
		if ports := pod.Spec.Containers[0].Ports; len(ports) > 0 {
			place.port = uint16(ports[0].ContainerPort)
		}
		d.places[pod.Name] = place
		full, err := yaml.Marshal(p.Object)
		if err != nil {
			return fmt.Errorf("write the demo's pods: %w", err)
		}
		fmt.Fprintf(&out, "%s---\n", full)
	}
	if err := os.WriteFile(path, bytes.TrimSuffix(out.Bytes(), []byte("---\n")), 0o644); err != nil {
		return fmt.Errorf("write the demo's pods: %w", err)
	}
	return nil
}

// nginxConf is a whole configuration: a server that tells what it was asked,
// by whom, and on which connection.
const nginxConf = `daemon off;
user nobody nogroup;
worker_processes 1;
pid %[1]s/pid;
error_log stderr error;
events { worker_connections 256; }
http {
	access_log off;
	server_tokens off;
	default_type application/json;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]d;
		listen [::]:%[2]d;
		location / {
			return 200 '{"server":"%[3]s","client":"$remote_addr","connection":$connection,"request":"$request_method $request_uri"}\n';
		}
	}
}
`

// serve starts nginx in every pod and in the world.
func (d *demo) serve(ctx context.Context) error {
	nginx, err := node.Program("nginx")
	if err != nil {
		return fmt.Errorf("find nginx: %w", err)
	}
	var started []*demoPlace
	for name, p := range d.places {
		if p.runs != "nginx" {
			continue
		}
		dir := filepath.Join(d.dir, "nginx", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make nginx's directory: %w", err)
		}
		conf := filepath.Join(dir, "nginx.conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, p.port, name), 0o644); err != nil {
			return fmt.Errorf("configure nginx: %w", err)
		}
		log, err := os.Create(filepath.Join(dir, "error.log"))
		if err != nil {
			return fmt.Errorf("make nginx's log: %w", err)
		}
		cmd := exec.Command(nginx, "-e", "stderr", "-p", dir, "-c", conf)
		cmd.Stderr = log
		_, err = d.node.StartProcessIn(p.Netns, cmd)
		log.Close()
		if err != nil {
			return err
		}
		started = append(started, p)
	}
	for _, p := range started {
		if err := p.awaitServer(ctx, filepath.Join(d.dir, "nginx", p.title)); err != nil {
			return err
		}
	}
	return nil
}

// awaitServer waits until both families are served.
func (p *demoPlace) awaitServer(ctx context.Context, dir string) error {
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		var errs []error
		for _, a := range p.addrs {
			c, err := p.DialContext(ctx, "tcp", node.To(a, p.port))
			if errs = append(errs, err); err == nil {
				c.Close()
			}
		}
		if last = errors.Join(errs...); last == nil || ctx.Err() != nil {
			return last
		}
		time.Sleep(20 * time.Millisecond)
	}
	text, _ := os.ReadFile(filepath.Join(dir, "error.log"))
	return fmt.Errorf("nginx of %s does not answer: %w\n%s", p.title, last, text)
}

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const streamsPolicy = `---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: streams, namespace: http}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: GET, path: /stream}]}
`

// metricsAddress is where each agent is scraped, on its node.
const metricsAddress = "127.0.0.1:9964"

// streamer answers with a body that goes on until it is told to end.
type streamer struct{ end chan struct{} }

func (s *streamer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for tick := time.Tick(50 * time.Millisecond); ; {
		select {
		case <-s.end:
			_, _ = io.WriteString(w, "that is all")
			return
		case <-r.Context().Done():
			return
		case <-tick:
		}
		_, _ = io.WriteString(w, "more ")
		_ = http.NewResponseController(w).Flush()
	}
}

// stream is a download that is under way.
type stream struct {
	read atomic.Int64
	done chan struct{}
	body string
	err  error
}

// download begins one.
func (s *space) download(address string) (*stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := s.dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET /stream HTTP/1.1\r\nHost: %s\r\n\r\n", address); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err := want200(status(resp), err); err != nil {
		_ = c.Close()
		return nil, err
	}
	d := &stream{done: make(chan struct{})}
	go func() {
		defer close(d.done)
		defer c.Close()
		var text strings.Builder
		_, d.err = io.Copy(io.MultiWriter(&text, counting{&d.read}), resp.Body)
		d.body = text.String()
	}()
	return d, nil
}

func status(r *http.Response) int {
	if r == nil {
		return 0
	}
	return r.StatusCode
}

type counting struct{ n *atomic.Int64 }

func (c counting) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// streams are two downloads in the middle of which update replaces Weir: one
// ends within the time that is given for that, and so well, and one does not end.
// That is cut when the time is up, and counted by the agent that took over.
func (d *deployed) streams(web, client pod, update func()) {
	var listener net.Listener
	if err := web.do(func() (err error) {
		listener, err = net.Listen("tcp", ":8080")
		return err
	}); err != nil {
		d.t.Fatal(err)
	}
	// Each its own server: whose end is told is known by its connection.
	end := make(chan struct{})
	first := &streamer{end}
	endless := &streamer{make(chan struct{})}
	var asked atomic.Int64
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			first.ServeHTTP(w, r)
			return
		}
		endless.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	defer func() { _ = server.Close() }()
	address := net.JoinHostPort(web.ip, "8080")
	var all [2]*stream
	for i := range all {
		var err error
		if all[i], err = client.download(address); err != nil {
			d.t.Fatal(err)
		}
	}
	began := time.Now()
	cutBefore := d.cutConnections()
	// It ends well within the time that it has from when the new proxy is there.
	readAt := make(chan int64, 1)
	time.AfterFunc(grace/2, func() {
		readAt <- all[0].read.Load()
		close(end)
	})
	update()
	if n := <-readAt; n == 0 {
		d.t.Error("nothing came of the stream")
	}
	<-all[0].done
	if all[0].err != nil || !strings.HasSuffix(all[0].body, "that is all") {
		d.t.Errorf("a stream of %v was cut: %v", grace/2, all[0].err)
	}
	select {
	case <-all[1].done:
		if all[1].err == nil {
			d.t.Error("a stream without end has ended")
		}
		d.t.Logf("a stream without end was cut: %v", all[1].err)
	case <-time.After(grace):
		d.t.Errorf("a stream goes on %v after it began, without the proxy that had it", time.Since(began))
	}
	if said := eventually(5*time.Second, func() string {
		// Another agent counts from 0.
		if n := d.cutConnections(); n != 1 {
			return fmt.Sprintf("%v connections were cut as the metrics say, and %v before; want 1", n, cutBefore)
		}
		return ""
	}); said != "" {
		d.t.Error(said)
	}
	if n := int(all[1].read.Load()); n < 100 {
		d.t.Errorf("of a stream that went on for most of %v came %d bytes", grace, n)
	}
}

// cutConnections is what the agent of the first node counts.
func (d *deployed) cutConnections() float64 {
	d.t.Helper()
	status, text, err := d.node.fetch(metricsAddress, "/metrics")
	if err := want200(status, err); err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if number, ok := strings.CutPrefix(line, `weir_proxy_cut_connections_total{reason="drain-ended"} `); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return n
		}
	}
	d.t.Fatal("there is no metric of connections that were cut")
	return 0
}

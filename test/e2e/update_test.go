package e2e

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
)

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

// grace is how long what is under way may take in stories of updates, instead of
// the minute that deploy/weir.yaml gives it.
const grace = 20 * time.Second

// rollTo deploys another image, with that many seconds for what is under way
// when it is replaced in turn, and returns when the pods of before are gone.
func (d *deployed) rollTo(image string, grace time.Duration) {
	d.t.Helper()
	text, err := os.ReadFile(manifest)
	if err != nil {
		d.t.Fatal(err)
	}
	changed := string(text)
	for from, to := range map[string]string{
		`image: weirnet/weir:\S+`:            "image: weirnet/weir:" + image,
		`terminationGracePeriodSeconds: \d+`: fmt.Sprintf("terminationGracePeriodSeconds: %d", int(grace.Seconds())),
		`--proxy-drain=\S+`:                  fmt.Sprintf("--proxy-drain=%v", grace),
		`--drain=\S+`:                        fmt.Sprintf("--drain=%v", grace-5*time.Second),
	} {
		r := regexp.MustCompile(from)
		if !r.MatchString(changed) {
			d.t.Fatalf("%s has no %s", manifest, from)
		}
		changed = r.ReplaceAllLiteralString(changed, to)
	}
	began := time.Now()
	d.kubectl(changed, "apply", "-f", "-")
	d.kubectl("", "-n", "weir-system", "rollout", "status", "daemonset/weir", "--timeout=150s")
	ready := time.Since(began)
	// The old pod is only on its way out when the new one is ready.
	d.kubectl("", "-n", "weir-system", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=weir,pod-template-generation="+d.generation(1), "--timeout=120s")
	d.t.Logf("rolled to %s in %.1fs, the old pods were gone after %.1fs", image, ready.Seconds(), time.Since(began).Seconds())
	for _, n := range d.Nodes {
		d.weirOn(n.Name, "status", "--ready")
	}
	d.enforced()
	for n := range strings.FieldsSeq(d.kubectl("", "-n", "weir-system", "get", "pods", "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}")) {
		if n != "0" {
			d.t.Errorf("a container was started again %s times", n)
		}
	}
}

// rollingUpdate replaces the DaemonSet's image while everything is in use:
// nothing may fail, and streams get their time.
func (d *deployed) rollingUpdate() {
	web, echo, client, asker := d.pod("http", "web"), d.pod("http", "echo"), d.pod("http", "client"), d.pod("names", "client")
	d.apply(updatePolicy)
	d.apply(namesPolicy)
	d.apply(streamsPolicy)
	d.enforced()
	l := d.loads()
	defer l.stop()
	for i := range 4 {
		l.start(fmt.Sprint("HTTP, kept alive, ", i), 5*time.Millisecond, keptAlive(client.space, web.web()))
	}
	l.start("HTTP, a connection each", 20*time.Millisecond, func() error { return want200(client.get(web.web(), "/hostname")) })
	l.start("HTTP denied", 50*time.Millisecond, func() error {
		if status, err := client.get(web.web(), "/clientip"); status != http.StatusForbidden {
			return fmt.Errorf("status %d, %w", status, err)
		}
		return nil
	})
	l.start("TCP, a connection each", 20*time.Millisecond, func() error { return want200(client.get(echo.web(), "/hostname")) })
	l.start("TCP, kept alive", 5*time.Millisecond, keptAlive(client.space, echo.web()))
	l.start("DNS", 10*time.Millisecond, func() error {
		_, err := asker.lookup(goodName)
		return err
	})
	l.start("scrapes", 50*time.Millisecond, func() error { return want200(d.node.get(metricsAddress, "/metrics")) })
	time.Sleep(2 * time.Second)
	d.rollTo("next", grace)
	d.streams(web, client, func() { d.rollTo("dev", grace) })
	time.Sleep(time.Second)
	l.end(nil)
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

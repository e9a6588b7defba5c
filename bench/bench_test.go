package main

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/policy/api"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		in := append([]float64{}, c.in...)
		if got := median(in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
		for i := range in {
			if in[i] != c.in[i] {
				t.Fatalf("median changed its argument to %v", in)
			}
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing = %v, want NaN", got)
	}
}

func TestPercentile(t *testing.T) {
	v := make([]float64, 200)
	for i := range v {
		v[len(v)-1-i] = float64(i + 1)
	}
	for p, want := range map[float64]float64{0: 1, 50: 100, 99: 198, 99.9: 200, 100: 200} {
		if got := percentile(v, p); got != want {
			t.Errorf("percentile %v of 1..200 = %v, want %v", p, got, want)
		}
	}
}

func TestPairedRatio(t *testing.T) {
	// The second round was twice as fast for both: the ratio must not see it.
	if got := pairedRatio([]float64{50, 100, 51}, []float64{100, 200, 100}); got != 0.5 {
		t.Errorf("ratio = %v, want 0.5", got)
	}
	if got := pairedRatio([]float64{1, 1}, []float64{0, 4}); got != 0.25 {
		t.Errorf("a round without a divisor must not count: %v", got)
	}
	if got := pairedRatio(nil, []float64{1}); !math.IsNaN(got) {
		t.Errorf("ratio of nothing = %v, want NaN", got)
	}
}

func TestParseProcStat(t *testing.T) {
	line := "42 (a ) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 7 7 20 0 5 0 100 1 2"
	if got, err := parseProcStat(line); err != nil || got != 2*time.Second {
		t.Errorf("parseProcStat = %v, %v, want 2s", got, err)
	}
	for _, bad := range []string{"", "42 (a S 1", "42 (a) S 1 2", "42 (a) S 1 42 42 0 -1 4194560 100 0 0 0 x 50 7"} {
		if got, err := parseProcStat(bad); err == nil {
			t.Errorf("parseProcStat(%q) = %v, want an error", bad, got)
		}
	}
}

func TestParseMachineStat(t *testing.T) {
	// user nice system idle iowait irq softirq steal guest guest_nice
	got, err := parseMachineStat("cpu  100 10 200 9999 888 5 35 77 100 10")
	if err != nil || got != 3500*time.Millisecond {
		t.Errorf("parseMachineStat = %v, %v, want 3.5s: no idle, iowait, steal, and guest once", got, err)
	}
	if _, err := parseMachineStat("cpu0 1 2 3 4 5 6 7 8"); err == nil {
		t.Error("the line of one CPU was taken for all")
	}
}

func TestOwnProcessTimes(t *testing.T) {
	begin := time.Now()
	for time.Since(begin) < 60*time.Millisecond {
		_ = strings.Repeat("x", 1000)
	}
	if got := cpuOf([]int{os.Getpid()}); got <= 0 {
		t.Errorf("own CPU time = %v, want more than 0", got)
	}
	if got := rss([]int{os.Getpid()}); got < 1<<20 {
		t.Errorf("own memory = %d, want more than 1 MiB", got)
	}
}

func TestParseWrk(t *testing.T) {
	good := "Running 1s test\n  1 threads\n" +
		`{"requests":1000,"bytes":5,"durationUs":500000,"p50Us":120,"p99Us":900,"status":0,"failed":0}` + "\n"
	s, err := parseWrk([]byte(good))
	if err != nil || s.Requests != 1000 || s.DurationUs != 500000 || s.P50Us != 120 || s.P99Us != 900 {
		t.Errorf("parseWrk = %+v, %v", s, err)
	}
	for name, bad := range map[string]string{
		"none":    "unable to connect",
		"refused": strings.Replace(good, `"status":0`, `"status":7`, 1),
		"failed":  strings.Replace(good, `"failed":0`, `"failed":1`, 1),
		"silent":  strings.Replace(good, `"requests":1000`, `"requests":0`, 1),
		"cut":     good[:len(good)-10],
	} {
		if s, err := parseWrk([]byte(bad)); err == nil {
			t.Errorf("%s: parseWrk = %+v, want an error", name, s)
		}
	}
}

func TestParseTCP(t *testing.T) {
	if got, err := parseTCP([]byte(`{"exchanges":500,"seconds":0.5}`)); err != nil || got != 1000 {
		t.Errorf("parseTCP = %v, %v, want 1000", got, err)
	}
	for _, bad := range []string{"", "{}", `{"exchanges":0,"seconds":1}`} {
		if got, err := parseTCP([]byte(bad)); err == nil {
			t.Errorf("parseTCP(%q) = %v, want an error", bad, got)
		}
	}
}

func TestParseGoBench(t *testing.T) {
	out := []byte("goos: linux\nBenchmarkProgram/established-2  \t 1000000\t 210.5 ns/op\t 12 B/op\t 0 allocs/op\n" +
		"BenchmarkProgram/established-2  \t 1000000\t 190.5 ns/op\nBenchmarkProgram/full-chain \t 10\t 400 ns/op\nPASS\n")
	all := parseGoBench(out)
	if got := median(collect(all, "Program/established", "ns/op")); got != 200.5 {
		t.Errorf("median of established = %v, want 200.5", got)
	}
	if got := collect(all, "Program/established", "allocs/op"); len(got) != 1 || got[0] != 0 {
		t.Errorf("allocations = %v, want one 0", got)
	}
	if got := collect(all, "Program/full-chain", "ns/op"); len(got) != 1 || got[0] != 400 {
		t.Errorf("a name with a dash = %v, want 400", got)
	}
}

// TestMain lets the test program stand for the bench, whose load starts itself
// again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "tcp-") {
		os.Exit(mainStatus(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// TestTCPLoad runs the load's client against its server over loopback.
func TestTCPLoad(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for mode, port := range tcpPorts() {
		server := exec.Command(self, "tcp-serve", mode, fmt.Sprint(port+20000))
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
		var got float64
		for range 50 {
			var out []byte
			client := exec.Command(self, "tcp-load", mode, fmt.Sprintf("127.0.0.1:%d", port+20000), "4", "100ms")
			if out, err = client.Output(); err == nil {
				got, err = parseTCP(out)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil || got <= 0 {
			t.Errorf("%s: %v a second, %v", mode, got, err)
		}
	}
}

func TestConfigs(t *testing.T) {
	dir := t.TempDir()
	v := configValues{Dir: dir, Name: "x", Workers: 1, Files: 1000, HalfFiles: 400, Connections: 1000,
		Origin: netip.MustParseAddr("10.0.0.1"), OriginPort: 80, Ports: []int{80}, Sets: ruleSets()}
	for _, tmpl := range []string{"origin.nginx.conf", "nginx.conf", "haproxy.cfg", "envoy.yaml", "summary.lua"} {
		path, err := writeConfig(dir, tmpl, tmpl, v)
		if err != nil {
			t.Errorf("%s: %v", tmpl, err)
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("<no value>")) {
			t.Errorf("%s: a value is missing", tmpl)
		}
		if tmpl == "nginx.conf" || tmpl == "haproxy.cfg" || tmpl == "envoy.yaml" {
			if got := bytes.Count(b, []byte("/api/v1/resource")); got != 1+100+1000 {
				t.Errorf("%s holds %d rules, want 1101", tmpl, got)
			}
		}
	}
}

func TestRequestMatchesOnlyTheLastRule(t *testing.T) {
	if got := request(hundredPort, smallItem); got != "/api/v1/resource0100/42" {
		t.Errorf("request for 100 rules = %s", got)
	}
	if got := request(thousandPort, largeItem); got != "/api/v1/resource1000/1048576" {
		t.Errorf("request for 1,000 rules = %s", got)
	}
}

func TestWriteSubjectPolicy(t *testing.T) {
	dir := t.TempDir()
	for _, open := range []bool{true, false} {
		if _, err := writeSubjectPolicy(dir, 3, 4, open); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(subjectPolicyPath(dir, 3, 4))
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(b, []byte(`port: "7010"`)); got != open {
			t.Errorf("open=%v: the probe's port is in the policy: %v", open, got)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("files left: %v, %v", left, err)
	}
}

// TestObjects holds what Weir is given to what Weir accepts: a policy that is
// refused would close its pods, and the cells would measure that.
func TestObjects(t *testing.T) {
	dir := t.TempDir()
	n := &node{prefix: netip.MustParsePrefix("10.88.3.0/24"), addr: netip.MustParseAddr("10.89.3.1")}
	for i := range nodePods {
		n.pods = append(n.pods, pod{name: fmt.Sprintf("pod-%d", i+1), addr: netip.AddrFrom4([4]byte{10, 88, 3, byte(i + 1)})})
	}
	if err := writeObjects(dir, n); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	policies := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := api.Read(file, b)
		for _, e := range got.Errors {
			t.Errorf("%v", e)
		}
		for _, p := range got.Policies {
			for _, e := range p.Refused {
				t.Errorf("%s %s is refused: %v", p.Kind, p.Name, e)
			}
		}
		policies += len(got.Policies)
	}
	if want := 4 + subjects*policiesPerSubject; policies != want {
		t.Errorf("%d policies, want %d", policies, want)
	}
}

func TestJudge(t *testing.T) {
	r := &report{
		Cells: []result{{Name: "http-32", Base: direct, Series: []series{
			{Target: direct, Samples: []sample{{Rate: 100}, {Rate: 200}}},
			{Target: weirHTTP, Samples: []sample{{Rate: 45, Proxy: 10}, {Rate: 90, Proxy: 10}}},
			{Target: haproxy, Samples: []sample{{Rate: 50, Proxy: 20}, {Rate: 100, Proxy: 20}}},
		}}},
		Figures: []figure{{Name: figureChange, Value: 101}},
	}
	r.judge()
	want := map[string]bool{
		"HTTP, 32 connections, of direct":                true,
		"HTTP, 32 connections, requests/s of HAProxy's":  false,
		"HTTP, CPU per request of HAProxy's (processes)": true,
		"policy change until enforced, p99, ms":          false,
	}
	for _, c := range r.Checks {
		met, ok := want[c.Name]
		if ok && met != c.Met {
			t.Errorf("%s: %v, met %v, want %v", c.Name, c.Value, c.Met, met)
		}
		delete(want, c.Name)
		if strings.Contains(c.Name, "Envoy") {
			t.Errorf("%s was judged though it was not measured", c.Name)
		}
	}
	if len(want) > 0 {
		t.Errorf("not judged: %v", want)
	}
	var b bytes.Buffer
	if err := r.print(&b); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"| weir ", "0.450", "**missed**", "met"} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("the table lacks %q:\n%s", part, b.String())
		}
	}
}

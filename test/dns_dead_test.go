package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestDeadServers: a server that is not there is told of at once, one that says
// nothing costs only who asked it, and a pod's second resolver helps.
func TestDeadServers(t *testing.T) {
	t.Parallel()
	needRoot(t)
	muslFetch(t)
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	s.must("world api 198.18.5.1 2001:db8:2:5::1")
	o.name("api", "60", s.places["api"])
	o.on("servfail", func(q *dns.Msg) []*dns.Msg { return []*dns.Msg{new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)} })
	o.on("silence", func(*dns.Msg) []*dns.Msg { return nil })
	s.must("start")
	web, live := s.places["shop/web"], s.places["kube-system/dns"]

	// Nobody listens there.
	for family := range 2 {
		began := time.Now()
		m, err := web.askDNS(t.Context(), "udp", addrPort(s.places["ns"], family, 53), typeOf(family), "api.good.test", patience)
		if err != nil || m.Rcode != dns.RcodeServerFailure {
			t.Errorf("IPv%d: nobody listens: %v, %v after %v", 4+2*family, m, err, time.Since(began))
		}
		_, err = web.askDNS(t.Context(), "tcp", addrPort(s.places["ns"], family, 53), typeOf(family), "api.good.test", patience)
		if got := outcome(err); got != "reset" && got != "refused" {
			t.Errorf("IPv%d: nobody listens by TCP: %v after %v", 4+2*family, err, time.Since(began))
		}
	}
	s.check("shop/web resolve kube-system/dns:53/servfail.good.test => SERVFAIL")

	// Nothing comes back, and what else the pod asks does not wait for that.
	if _, err := s.network.Outside.Run(t.Context(), `table inet silence {
	chain input {
		type filter hook input priority filter;
		ip daddr 198.18.0.53 drop
		ip6 daddr 2001:db8:2::53 drop
	}
}`, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for family := range 2 {
		for _, network := range []string{"udp", "tcp"} {
			for range 20 {
				all.Go(func() {
					m, err := web.askDNS(t.Context(), network, addrPort(s.places["ns"], family, 53), typeOf(family), "api.good.test", 2*time.Second)
					if err == nil {
						t.Errorf("IPv%d, %s: a server that says nothing: %v", 4+2*family, network, m)
					}
				})
			}
		}
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		for family := range 2 {
			for _, network := range []string{"udp", "tcp"} {
				began := time.Now()
				m, err := web.askDNS(t.Context(), network, addrPort(live, family, 53), typeOf(family), "api.good.test", patience)
				if err != nil || len(addresses(m)) != 1 {
					t.Fatalf("IPv%d, %s: beside a server that says nothing: %v, %v after %v", 4+2*family, network, m, err, time.Since(began))
				}
			}
		}
	}
	all.Wait()
	if got := s.dig(web, "@"+live.addrs[0].String(), "+time=1", "silence.good.test"); !strings.Contains(got, "timed out") && !strings.Contains(got, "no servers could be reached") {
		t.Errorf("dig: %s", got)
	}
	for client, ask := range clients {
		all.Go(func() {
			conf := fmt.Sprintf("nameserver %s\nnameserver %s\noptions timeout:1 attempts:2\n", s.places["ns"].addrs[0], live.addrs[0])
			if _, err := ask(s, web, conf, "api.good.test"); err != nil {
				t.Errorf("%s, whose first resolver says nothing: %v", client, err)
			}
		})
	}
	all.Wait()
	out, err := s.nodes[0].Weir().Command(t.Context(), "flows", "--last", "-1", "--layer", "l7", "--reason", "dns-server-refused")
	if err != nil || !regexp.MustCompile(`api\.good\.test.*SERVFAIL`).MatchString(out) {
		t.Errorf("flows of a server that is not there: %v\n%s", err, out)
	}
}

// TestFlood: a pod that asks all it can, and is answered nothing, costs others no
// answer.
func TestFlood(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "dnsperf")
	s := tell(t, "setups/dns-own.txtar")
	o := s.serveOwn(s.places["kube-system/dns"])
	o.numbered(400)
	s.must("start")
	// A thousand names, and a server that swallows the questions.
	silent, err := s.network.Outside.ListenPacket("udp", addrPort(s.places["ns"], 0, 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var questions strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&questions, "n%d.good.test A\n", i)
	}
	file := filepath.Join(t.TempDir(), "questions")
	if err := os.WriteFile(file, []byte(questions.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out := make(chan string, 1)
	go func() {
		text, _ := s.places["shop/web2"].Run(t.Context(), "", "dnsperf", "-s", s.places["ns"].addrs[0].String(), "-d", file,
			"-c", "20", "-q", "60000", "-Q", "15000", "-l", "3", "-t", "2")
		out <- text
	}()
	time.Sleep(500 * time.Millisecond)
	for i := range 150 {
		network := []string{"udp", "tcp"}[i%2]
		m, err := s.places["shop/web"].askDNS(t.Context(), network, addrPort(s.places["kube-system/dns"], i/2%2, 53), dns.TypeA, fmt.Sprintf("n%d.good.test", i), patience)
		if err != nil || len(addresses(m)) != 1 {
			t.Errorf("question %d beside a flood: %v, %v", i, m, err)
			break
		}
		s.places["shop/web"].open(t, "beside a flood", manyAddrs(i)[0])
	}
	// No more than the bound of one pod's questions to one server wait; the others
	// are told at once.
	text := <-out
	lost, sent := 0, 0
	if m := perfCounts.FindStringSubmatch(text); m != nil {
		sent, _ = strconv.Atoi(m[1])
		lost, _ = strconv.Atoi(m[2])
	}
	if lost == 0 || lost > 4096 || sent > 5000 && !strings.Contains(text, "SERVFAIL") {
		t.Errorf("%d of %d questions were not answered:\n%s", lost, sent, text[max(0, len(text)-1000):])
	}
}

var perfCounts = regexp.MustCompile(`(?s)Queries sent:\s+(\d+).*Queries lost:\s+(\d+) `)

package test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/flow"
)

// TestDNSBehindService: the questions of a pod with rules by name are seen though
// the service sends them to another port than 53, whoever translates; what they
// teach counts, and nothing else.
func TestDNSBehindService(t *testing.T) {
	t.Parallel()
	s := tell(t, "setups/dns-behind.txtar")
	if err := s.objects.Write("service", s.files["service.yaml"]); err != nil {
		t.Fatal(err)
	}
	// As kube-proxy, for those that Weir does not translate.
	cluster := two("10.96.0.10", "fd96::10")
	if err := s.nodes[0].Service(t.Context(), cluster, []string{"UDP", "TCP"}, 53, s.podsNamed([]string{"kube-system/dns"}), 5353); err != nil {
		t.Fatal(err)
	}
	if s.nodes[0].Cgroup == "" {
		s.contained("shop/web", true) // skips or fails
	}
	s.must("start")
	eventually(t, 10*time.Second, "services are translated", func() bool { return s.servicesStatus(0).Why == "" })

	resolv := "nameserver 10.96.0.10\noptions timeout:2 attempts:2\n"
	curl := func(name string) []string {
		return []string{"-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://" + name + "/"}
	}
	for _, pod := range []string{"shop/web", "shop/all"} {
		if out, err := s.translatedIn(pod, resolv, "curl", curl("api.shop.test")...); err != nil || out != "200" {
			t.Errorf("%s, translated: %q, %v", pod, out, err)
		}
		// Its name is known as well, but it is not the pod's.
		if out, err := s.translatedIn(pod, resolv, "curl", curl("img.shop.test")...); err == nil {
			t.Errorf("%s reached what it may not: %q", pod, out)
		}
	}
	if got := s.servicesStatus(0).Translated; got == 0 {
		t.Error("nothing was translated")
	}
	if known := s.names("api.shop.test"); len(known) == 0 {
		t.Error("nothing was learned")
	}
	// By TCP, by IPv6, and what kube-proxy translates.
	web, server := s.places["shop/web"], s.places["kube-system/dns"]
	for i, a := range cluster {
		for _, network := range []string{"udp", "tcp"} {
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(a, 53), netip.AddrPortFrom(server.addrs[i], 5353)} {
				m, err := web.askDNS(context.Background(), network, to, dns.TypeA, "api.shop.test", patience)
				if err != nil || len(addresses(m)) != 1 {
					t.Errorf("%s %v: %v, %v", network, to, m, err)
				}
			}
		}
	}
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(cluster[1], 53), netip.AddrPortFrom(server.addrs[0], 5353)} {
		for _, protocol := range []string{"UDP", "TCP"} {
			if _, err := s.awaitRecord(func(r flow.Record) bool {
				return r.Layer == "L7" && r.Protocol == protocol && r.Dest.Addr == to.Addr() && r.Dest.Port == to.Port() && r.Reason == "dns-allow-all"
			}); err != nil {
				t.Errorf("the question by %s to %v was not seen: %v", protocol, to, err)
			}
		}
	}
}

// translatedIn runs a program in a pod where services are translated, with a
// resolv.conf of its own.
func (s *story) translatedIn(pod, resolvConf, name string, args ...string) (string, error) {
	s.t.Helper()
	command, err := s.asContainer(resolvConf, name, args...)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	p := s.places[pod].pod
	started, err := p.Contain(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	err = p.Start(cmd)
	started()
	if err == nil {
		err = cmd.Wait()
	}
	return strings.TrimSpace(out.String()), err
}

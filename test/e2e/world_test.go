package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What is outside of the cluster: a name server, and web servers everywhere.
const (
	worldServer = "198.51.100.2"
	worldZone   = "e2e.test."
)

// Names that the name server knows, and their addresses: others in each run, as
// what was learned in one before may still hold.
var (
	run          = time.Now().Unix()
	goodName     = fmt.Sprintf("good-%d.%s", run, worldZone)
	otherName    = fmt.Sprintf("other-%d.%s", run, worldZone)
	goodAddress  = fmt.Sprintf("198.18.%d.%d", run>>8&255, run&255)
	otherAddress = fmt.Sprintf("198.19.%d.%d", run>>8&255, run&255)
)

// startWorld serves in the namespace of the cluster's bridge until the test ends.
func startWorld(t *testing.T, s *space) {
	t.Helper()
	var packets net.PacketConn
	var web net.Listener
	err := s.do(func() error {
		var failed [2]error
		packets, failed[0] = net.ListenPacket("udp4", worldServer+":53")
		web, failed[1] = net.Listen("tcp4", ":80")
		return errors.Join(failed[:]...)
	})
	if err != nil {
		t.Fatal("serve the world: ", err)
	}
	names := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(answer)}
	pages := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go func() { _ = names.ActivateAndServe() }()
	go func() { _ = pages.Serve(web) }()
	t.Cleanup(func() {
		_ = names.Shutdown()
		_ = pages.Close()
	})
}

func answer(w dns.ResponseWriter, q *dns.Msg) {
	a := new(dns.Msg).SetReply(q)
	if len(q.Question) == 1 {
		address, known := map[string]string{goodName: goodAddress, otherName: otherAddress}[q.Question[0].Name]
		switch {
		case !known:
			a.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			a.Answer = append(a.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(address),
			})
		}
	}
	_ = w.WriteMsg(a)
}

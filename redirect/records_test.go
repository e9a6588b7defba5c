package redirect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/proxy/control"
)

func TestRecordOfAQuestion(t *testing.T) {
	at := time.Unix(1000, 5)
	base := func() *control.Record {
		return &control.Record{
			Time: at.UnixNano(), Source: []byte{10, 0, 0, 1}, SourcePort: 4711, SourceIdentity: 11,
			Destination: []byte{10, 0, 0, 2}, DestinationPort: 53, DestinationIdentity: 12,
			Directions: 1 << policy.Egress, Rules: []uint32{0, 7}, Judge: 2, Protocol: "UDP", Latency: 1000,
			Dns: &control.DNS{Name: "wWw.x", Type: 28, Class: 1, Answered: true, Chain: []string{"a.x"}, Addresses: [][]byte{{192, 0, 2, 1}, {1}}},
		}
	}
	for name, c := range map[string]struct {
		change func(*control.Record)
		want   flow.DNS
		rule   uint32
	}{
		"answered": {func(*control.Record) {}, flow.DNS{
			Name: "wWw.x", Type: "AAAA", RCode: "NOERROR", Chain: []string{"a.x"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Latency: 1000,
		}, 7},
		"denied": {func(r *control.Record) {
			r.Judge, r.Rules, r.Dns = uint32(policy.Egress), []uint32{0, 0}, &control.DNS{Name: ".", Type: 2, Class: 1, Answered: true, Rcode: 5}
		}, flow.DNS{Name: ".", Type: "NS", RCode: "REFUSED", Latency: 1000}, 0},
		"unknown numbers": {func(r *control.Record) {
			r.Dns = &control.DNS{Name: "x", Type: 65399, Class: 4660, Answered: true, Rcode: 15}
		}, flow.DNS{Name: "x", Type: "TYPE65399", Class: "CLASS4660", RCode: "RCODE15", Latency: 1000}, 7},
		"not answered": {func(r *control.Record) { r.Dns = &control.DNS{Name: "x", Type: 1, Class: 1} },
			flow.DNS{Name: "x", Type: "A", Latency: 1000}, 7},
		"unreadable": {func(r *control.Record) { r.Dns = &control.DNS{} }, flow.DNS{Latency: 1000}, 7},
	} {
		m := base()
		c.change(m)
		r, rule := recordOf(m)
		if r.HTTP != nil || r.Protocol != "UDP" || r.Source.Port != 4711 || r.Direction != "egress" || rule != c.rule || !r.Time.Equal(at) {
			t.Errorf("%s: %+v, rule %d", name, r, rule)
		}
		if diff := cmp.Diff(&c.want, r.DNS, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

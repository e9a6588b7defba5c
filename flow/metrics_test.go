package flow

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weirnet/weir/policy"
)

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := NewMetrics(reg)
	var readers atomic.Uint64
	readers.Store(3)
	reg.MustRegister(NewKernelCollector(func() (KernelCounts, error) {
		return KernelCounts{
			Reasons: []KernelCount{
				{Reason: "policy-denied", Direction: "ingress", Drop: true, Packets: 5, Bytes: 300},
				{Reason: "host", Direction: "ingress", Packets: 2, Bytes: 100},
			},
			Limited: 7, Full: 1,
		}, nil
	}, &readers))
	m.Observe(&Record{Verdict: Dropped, Reason: "policy-denied", Direction: "ingress"})
	m.Observe(&Record{Verdict: Forwarded, Reason: "http-rule", HTTP: &HTTP{Status: 200}, Rule: &policy.RuleRef{Policy: "CiliumNetworkPolicy shop/a"}})
	m.Observe(&Record{Verdict: Dropped, Reason: "http-denied", HTTP: &HTTP{Status: 403}})
	m.Observe(&Record{Verdict: Forwarded, Reason: "http-rule", HTTP: &HTTP{Status: 9999}})
	m.Observe(&Record{Verdict: Forwarded, Reason: "dns-rule", DNS: &DNS{RCode: "NXDOMAIN", Latency: 1}, Rule: &policy.RuleRef{Policy: "CiliumNetworkPolicy shop/a"}})
	m.Observe(&Record{Verdict: Forwarded, Reason: "dns-server-timeout", DNS: &DNS{}, Rule: &policy.RuleRef{Policy: "CiliumNetworkPolicy shop/a"}})
	m.Observe(&Record{Verdict: Dropped, Reason: "dns-denied", DNS: &DNS{RCode: "REFUSED", Latency: 1}})
	want := `# HELP weir_dns_questions_total DNS questions the proxy decided, by verdict, reason, code of the answer ("none": not answered) and deciding policy ("": default deny; "other": beyond the first 500 policies).
# TYPE weir_dns_questions_total counter
weir_dns_questions_total{policy="",rcode="REFUSED",reason="dns-denied",verdict="DROPPED"} 1
weir_dns_questions_total{policy="CiliumNetworkPolicy shop/a",rcode="NXDOMAIN",reason="dns-rule",verdict="FORWARDED"} 1
weir_dns_questions_total{policy="CiliumNetworkPolicy shop/a",rcode="none",reason="dns-server-timeout",verdict="FORWARDED"} 1
# HELP weir_drop_packets_total Packets dropped in the kernel, by reason and the direction that judged.
# TYPE weir_drop_packets_total counter
weir_drop_packets_total{direction="ingress",reason="policy-denied"} 5
# HELP weir_flows_total Flow verdicts recorded by the kernel: new flows, changed verdicts and drops (drops beyond a rate limit are in weir_drop_packets_total only).
# TYPE weir_flows_total counter
weir_flows_total{direction="ingress",reason="policy-denied",verdict="DROPPED"} 1
# HELP weir_http_requests_total HTTP requests the proxy decided, by verdict, status code sent to the client and deciding policy ("": default deny; "other": beyond the first 500 policies).
# TYPE weir_http_requests_total counter
weir_http_requests_total{code="200",policy="CiliumNetworkPolicy shop/a",verdict="FORWARDED"} 1
weir_http_requests_total{code="403",policy="",verdict="DROPPED"} 1
weir_http_requests_total{code="other",policy="",verdict="FORWARDED"} 1
# HELP weir_lost_records_total Records that were lost: at "limit" because drops came too fast to tell each, at "kernel" because its ring was full, at "reader" because someone who follows flows was too slow.
# TYPE weir_lost_records_total counter
weir_lost_records_total{at="kernel"} 1
weir_lost_records_total{at="limit"} 7
weir_lost_records_total{at="reader"} 3
# HELP weir_new_flows_total New flows the kernel let pass or sent to the proxy, by reason and direction.
# TYPE weir_new_flows_total counter
weir_new_flows_total{direction="ingress",reason="host"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "weir_dns_questions_total", "weir_drop_packets_total", "weir_flows_total",
		"weir_http_requests_total", "weir_lost_records_total", "weir_new_flows_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(m.answerLatency); n != 1 {
		t.Errorf("%d series of answers", n)
	}
	for i := range 2 * maxPolicyLabels {
		m.Observe(&Record{Verdict: Forwarded, HTTP: &HTTP{Status: 200}, Rule: &policy.RuleRef{Policy: fmt.Sprint("P ", i)}})
	}
	if n := testutil.CollectAndCount(m.requests); n > maxPolicyLabels+5 {
		t.Errorf("%d series of requests", n)
	}
}

// What a proxy says of questions makes so many series and no more.
func TestQuestionSeriesAreBounded(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	const verdicts = 2
	for i := range 2 * maxQuestionSeries {
		for _, v := range []Verdict{Forwarded, Dropped} {
			m.Observe(&Record{Verdict: v, Reason: fmt.Sprint("reason ", i), DNS: &DNS{RCode: fmt.Sprint("RCODE", i)}})
		}
	}
	m.Observe(&Record{Verdict: Dropped, Reason: strings.Repeat("x", 1<<20), DNS: &DNS{}})
	if n := testutil.CollectAndCount(m.questions); n > maxQuestionSeries+verdicts {
		t.Errorf("%d series", n)
	}
	if n := testutil.ToFloat64(m.questions.WithLabelValues(Forwarded.String(), "other", "other", "other")); n != 1.5*maxQuestionSeries {
		t.Errorf("%v others passed", n)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	rule := &policy.RuleRef{Policy: "CiliumNetworkPolicy shop/a"}
	for _, r := range []*Record{
		record(0), record(1),
		{Verdict: Forwarded, Reason: "http-rule", HTTP: &HTTP{Status: 200, Latency: 1}, Rule: rule},
		{Verdict: Dropped, Reason: "http-denied", HTTP: &HTTP{Status: 403}},
		{Verdict: Forwarded, Reason: "http-rule", HTTP: &HTTP{Status: 9999}, Rule: rule},
	} {
		if n := testing.AllocsPerRun(100, func() { m.Observe(r) }); n != 0 {
			t.Errorf("%s: %v allocations", r.Reason, n)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	m := NewMetrics(prometheus.NewRegistry())
	r := record(0)
	r.Direction = "ingress"
	b.ReportAllocs()
	for b.Loop() {
		m.Observe(r)
	}
}

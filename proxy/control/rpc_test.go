package control

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/policy"
	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/policy/httprules"
)

func TestRuleSetsAreNotChanged(t *testing.T) {
	for _, rs := range []policy.RuleSet{
		{ID: 1},
		{ID: 2, AllowAll: true, AllowRule: 9},
		{ID: 3, HTTP: []httprules.Rule{
			{Path: "/a", Method: "GET", Host: "h", Headers: []string{"X", "Y: z"}, Rule: 4},
			{HeaderMatches: []httprules.HeaderMatch{{Mismatch: "ADD", Name: "n", Value: "v"}, {Name: "m"}}, Rule: 5},
		}},
		{ID: 4, Protocol: policy.ProtocolDNS, Teaches: true, TeachesFor: "shop", DNS: []dnsrules.Rule{
			{Selector: dnsrules.Selector{Name: "api.example.test"}, Rule: 6},
			{Selector: dnsrules.Selector{Pattern: "*.cdn.example.test"}},
		}},
		{ID: 5, Protocol: policy.ProtocolDNS, AllowAll: true, AllowRule: 7},
		{ID: 6, Protocol: 99},
	} {
		if d := cmp.Diff(rs, RuleSetFrom(RuleSetOf(&rs))); d != "" {
			t.Errorf("set %d (-sent +received):\n%s", rs.ID, d)
		}
	}
}

type echo struct{ UnimplementedProxyServer }

func (echo) Status(context.Context, *StatusRequest) (*StatusResponse, error) {
	return &StatusResponse{Boot: "x"}, nil
}

func (echo) Records(_ *RecordsRequest, s Proxy_RecordsServer) error {
	<-s.Context().Done()
	return s.Context().Err()
}

func TestServeOneConnection(t *testing.T) {
	a, b := socketPair(t)
	_ = a.SetDeadline(time.Time{})
	_ = b.SetDeadline(time.Time{})
	s := grpc.NewServer()
	RegisterProxyServer(s, echo{})
	served := make(chan error, 1)
	go func() { served <- Serve(s, a) }()
	cc, err := NewClient(b)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	client := NewProxyClient(cc)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	answer, err := client.Status(ctx, &StatusRequest{})
	if err != nil || answer.Boot != "x" {
		t.Fatalf("%v, %v", answer, err)
	}
	stream, err := client.Records(ctx, &RecordsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// The end of the connection is seen at once, and nothing dials again.
	began := time.Now()
	go s.Stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := client.Status(ctx, &StatusRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a call on a dead connection: %v", err)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("it took %v", d)
	}
}

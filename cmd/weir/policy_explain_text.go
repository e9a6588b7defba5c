package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/weirnet/weir/policy"
)

// writeAnswer spells an answer for people:
//
//	DENIED  shop/web -> shop/api, TCP port 8080
//
//	egress   allowed  a rule allows it
//	                  CiliumNetworkPolicy shop/web  spec.egress[0].toPorts[0]  web.yaml:12
//	ingress  denied   default deny: no rule allows it and a policy selects pod shop/api
//	                  NetworkPolicy shop/api
//	  not NetworkPolicy shop/api  spec.ingress[0]  api.yaml:9
//	      pod shop/web is not among its peers: pods app=cart in namespace shop
func writeAnswer(w io.Writer, q *policy.Question, a *policy.Answer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s -> %s, %s\n", strings.ToUpper(string(a.Verdict)), q.From, destinationOf(q), flowOf(q))
	for _, s := range []struct {
		name string
		side *policy.Side
	}{{"egress", a.Egress}, {"ingress", a.Ingress}} {
		if s.side == nil {
			continue
		}
		fmt.Fprintf(&b, "\n%-8s %-8s %s\n", s.name, s.side.Verdict, s.side.Reason)
		if s.side.Policy != "" {
			fmt.Fprintf(&b, "%18s%s\n", "", place(policy.RuleRef{Policy: s.side.Policy, Rule: s.side.Rule, File: s.side.File, Line: s.side.Line}))
		}
		for _, o := range s.side.Others {
			fmt.Fprintf(&b, "  not %s\n      %s\n", place(o.RuleRef), o.Reason)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// destinationOf spells where the flow goes, with the names it has there.
func destinationOf(q *policy.Question) string {
	if len(q.Names) == 0 {
		return q.To
	}
	return fmt.Sprintf("%s (%s)", q.To, strings.Join(q.Names, ", "))
}

// flowOf spells the flow less its ends.
func flowOf(q *policy.Question) string {
	protocol := q.Protocol
	switch {
	case protocol != "":
	case q.ICMPType != nil:
		protocol = "ICMP"
	default:
		protocol = "TCP"
	}
	if q.ICMPType != nil {
		return fmt.Sprintf("%s type %d", protocol, *q.ICMPType)
	}
	text := protocol
	if q.Port != "" {
		text += " port " + q.Port
	}
	if q.HTTP != nil {
		text += fmt.Sprintf(", %s %s%s", q.HTTP.Method, q.HTTP.Host, q.HTTP.Path)
	}
	if q.DNS != nil {
		text += fmt.Sprintf(", %s %s", q.DNS.Type, q.DNS.Name)
	}
	return text
}

func place(r policy.RuleRef) string {
	text := r.Policy
	if r.Rule != "" {
		text += "  " + r.Rule
	}
	if r.File != "" {
		text += "  " + r.File
		if r.Line > 0 {
			text += fmt.Sprintf(":%d", r.Line)
		}
	}
	return text
}

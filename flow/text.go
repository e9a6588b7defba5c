package flow

import (
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Text is the record as one line for people: time, verdict, who asked whom,
// what, why, and which policy decided. With color the verdict stands out.
func (r *Record) Text(color bool) string {
	var b strings.Builder
	b.WriteString(r.Time.Local().Format("15:04:05.000 "))
	word, paint := r.Verdict.String(), "\x1b[31m"
	switch r.Verdict {
	case Forwarded:
		paint = "\x1b[32m"
	case Redirected:
		paint = "\x1b[33m"
	}
	if color {
		b.WriteString(paint)
	}
	b.WriteString(word)
	if color {
		b.WriteString("\x1b[0m")
	}
	b.WriteString(strings.Repeat(" ", max(11-len(word), 1)))
	b.WriteString(r.Source.Text())
	b.WriteString(" -> ")
	b.WriteString(r.Dest.Text())
	b.WriteByte(' ')
	b.WriteString(r.Protocol)
	if r.ICMPType != nil {
		b.WriteString(" type " + strconv.Itoa(int(*r.ICMPType)))
	}
	if h := r.HTTP; h != nil {
		h.text(&b)
	}
	if d := r.DNS; d != nil && d.Name != "" {
		d.text(&b)
	}
	b.WriteString("  " + r.Reason)
	if r.Direction != "" {
		b.WriteString(" (" + r.Direction + ")")
	}
	if why := r.Why(); why != "" {
		b.WriteString("  " + why)
	}
	return b.String()
}

func (h *HTTP) text(b *strings.Builder) {
	b.WriteString("  " + clean(h.Method) + " ")
	if h.Host != "" {
		b.WriteString(clean(h.Host))
	}
	b.WriteString(clean(h.Path))
	if h.Status != 0 {
		b.WriteString(" " + strconv.Itoa(h.Status))
	}
	writeLatency(b, h.Latency)
}

// text is what was asked, by which names it went, and the answer.
func (d *DNS) text(b *strings.Builder) {
	b.WriteString("  ")
	if d.Class != "" {
		b.WriteString(clean(d.Class) + " ")
	}
	b.WriteString(clean(d.Type) + " " + clean(d.Name))
	for _, name := range d.Chain {
		b.WriteString(" > " + clean(name))
	}
	if d.RCode == "" {
		b.WriteString(" no answer")
	} else {
		b.WriteString(" " + clean(d.RCode))
	}
	for i, a := range d.Addresses {
		if i == shownAddresses {
			b.WriteString(" and " + strconv.Itoa(len(d.Addresses)-i) + " more")
			break
		}
		b.WriteString(" " + a.String())
	}
	writeLatency(b, d.Latency)
}

// shownAddresses bounds the addresses of one answer that are shown.
const shownAddresses = 4

func writeLatency(b *strings.Builder, d time.Duration) {
	if d > 0 {
		b.WriteString(" " + d.Round(10*time.Microsecond).String())
	}
}

// Why names what decided: the rule, or the policies that select the pod and
// have no rule that allows this.
func (r *Record) Why() string {
	if r.Rule != nil && r.Rule.Policy != "" {
		s := r.Rule.Policy
		if r.Rule.Rule != "" {
			s += " " + r.Rule.Rule
		}
		if r.Rule.File != "" {
			s += " (" + r.Rule.File
			if r.Rule.Line > 0 {
				s += ":" + strconv.Itoa(r.Rule.Line)
			}
			s += ")"
		}
		return s
	}
	switch n := len(r.Policies); {
	case n == 0:
		return ""
	case n <= 3:
		return "no rule in " + strings.Join(r.Policies, ", ")
	default:
		return "no rule in " + strings.Join(r.Policies[:3], ", ") + " and " + strconv.Itoa(n-3) + " more"
	}
}

// Text is namespace/pod:port where the pod is known, else address:port with
// what the address stands for.
func (p Peer) Text() string {
	if p.Pod != "" {
		s := p.Namespace + "/" + p.Pod
		if p.Port != 0 {
			s += ":" + strconv.Itoa(int(p.Port))
		}
		return s
	}
	s := p.Addr.String()
	if p.Port != 0 {
		s = net.JoinHostPort(s, strconv.Itoa(int(p.Port)))
	}
	known, more := "", 0
	for _, l := range p.Labels {
		source, name, _ := strings.Cut(l, ":")
		switch {
		case source == "reserved":
			return s + " (" + name + ")"
		case source != "service" && source != "fqdn":
		case known == "":
			known = name
		default:
			more++
		}
	}
	switch {
	case known == "":
		return s
	case more > 0:
		known += " +" + strconv.Itoa(more)
	}
	return s + " (" + known + ")"
}

// clean keeps what a client sent from steering the reader's terminal.
func clean(s string) string {
	const limit = 120
	var b strings.Builder
	n := 0
	for _, c := range s {
		if n++; n > limit {
			return b.String() + "..."
		}
		if !unicode.IsPrint(c) || c == unicode.ReplacementChar {
			c = '?'
		}
		b.WriteRune(c)
	}
	return b.String()
}

package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weirnet/weir/fqdn"
	"github.com/weirnet/weir/policy/dnsrules"
)

// query is a question as clients send it.
func query(name string, kind uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), kind)
	return m
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// records reads lines of a zone.
func records(t testing.TB, lines ...string) (out []dns.RR) {
	t.Helper()
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rr)
	}
	return out
}

// reply answers a question with lines of a zone.
func replyTo(t testing.TB, q *dns.Msg, lines ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Compress = true
	m.Answer = records(t, lines...)
	return m
}

// header is a header with counts.
func header(counts ...byte) []byte {
	h := make([]byte, headerSize)
	for i, n := range counts {
		h[5+2*i] = n
	}
	return h
}

func TestQuestion(t *testing.T) {
	long := strings.Repeat("\x3f"+strings.Repeat("a", 63), 3) // 192 bytes
	for name, c := range map[string]struct {
		section string
		want    string
		ok      bool
	}{
		"plain":                  {"\x03wWw\x07Example\x03com\x00\x00\x01\x00\x01", "www.example.com", true},
		"root":                   {"\x00\x00\x02\x00\x01", "", true},
		"bytes behind it":        {"\x01a\x00\x00\x01\x00\x01anything", "a", true},
		"dot in a label":         {"\x03a.b\x01c\x00\x00\x01\x00\x01", `a\.b.c`, true},
		"backslash":              {"\x03a\\b\x00\x00\x01\x00\x01", `a\\b`, true},
		"any bytes":              {"\x05\x00\xff @\x7f\x00\x00\x01\x00\x01", `\000\255\ \@\127`, true},
		"letters that are none":  {"\x02\xc3\x84\x00\x00\x01\x00\x01", `\195\132`, true},
		"255 bytes":              {long + "\x3d" + strings.Repeat("b", 61) + "\x00\x00\x01\x00\x01", strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61), true},
		"256 bytes":              {long + "\x3e" + strings.Repeat("b", 62) + "\x00\x00\x01\x00\x01", "", false},
		"label of 64":            {"\x40" + strings.Repeat("a", 64) + "\x00\x00\x01\x00\x01", "", false},
		"pointer to itself":      {"\xc0\x0c\x00\x01\x00\x01", "", false},
		"pointer into header":    {"\x01a\xc0\x00\x00\x01\x00\x01", "", false},
		"pointer to its start":   {"\x01a\xc0\x0c\x00\x01\x00\x01", "", false},
		"extended label":         {"\x41\x01\x00\x00\x01\x00\x01", "", false},
		"no end":                 {"\x01a", "", false},
		"no type":                {"\x01a\x00", "", false},
		"half a class":           {"\x01a\x00\x00\x01\x00", "", false},
		"nothing":                {"", "", false},
		"label beyond the end":   {"\x09a\x00\x00\x01\x00\x01", "", false},
		"label up to the end":    {"\x06a\x00\x00\x01\x00\x01", "", false},
		"class and type unknown": {"\x01a\x00\xff\xfe\x12\x34", "a", true},
	} {
		var q question
		m := append(header(1), c.section...)
		ok := q.read(m)
		if ok != c.ok || ok && string(q.name) != c.want {
			t.Errorf("%s: %q, %v; want %q, %v", name, q.name, ok, c.want, c.ok)
		}
		if ok && (len(q.wire) > len(c.section) || string(q.wire) != c.section[:len(q.wire)]) {
			t.Errorf("%s: the section is %q", name, q.wire)
		}
	}
	for _, counts := range [][]byte{{0}, {2}, {255}} {
		var q question
		if q.read(append(header(counts...), "\x01a\x00\x00\x01\x00\x01\x01a\x00\x00\x01\x00\x01"...)) {
			t.Errorf("%d questions", counts[0])
		}
	}
	// 256 and 1 questions.
	m := append(header(1), "\x01a\x00\x00\x01\x00\x01"...)
	if m[4] = 1; new(question).read(m) {
		t.Error("257 questions")
	}
}

func TestAppendName(t *testing.T) {
	for section, want := range map[string]string{
		"\x03wWw\x01X\x00\x00\x01\x00\x01": "wWw.X",
		"\x00\x00\x01\x00\x01":             ".",
		"\x03a.b\x01\x0a\x00....":          `a\.b.\010`,
		"":                                 ".",
		"\x05ab":                           ".", // of none that was read
	} {
		if got := string(AppendName([]byte(">"), []byte(section))); got != ">"+want {
			t.Errorf("%q: %q, want %q", section, got, want)
		}
	}
}

func TestSameQuestion(t *testing.T) {
	a := "\x03wWw\x01x\x00\x00\x41\x00\x01"
	for b, want := range map[string]bool{
		a:                                  true,
		"\x03Www\x01X\x00\x00\x41\x00\x01": true,
		"\x03Www\x01X\x00\x00\x61\x00\x01": false, // 'A' and 'a' in the type
		"\x03wWx\x01x\x00\x00\x41\x00\x01": false,
		"\x03wWw\x01x\x00\x00\x41\x00\x02": false,
		"\x03wWw\x01x\x00\x00\x41\x00":     false,
		"":                                 false,
	} {
		if sameQuestion([]byte(a), []byte(b)) != want {
			t.Errorf("%q: want %v", b, want)
		}
	}
	if sameQuestion(nil, nil) {
		t.Error("nothing asks the same as nothing")
	}
}

// reading is what an answer was read as.
type reading struct {
	chain   []string
	records []fqdn.Record
}

func (a *answer) reading() (r reading) {
	for _, name := range a.chain {
		r.chain = append(r.chain, strings.Clone(name))
	}
	r.records = slices.Clone(a.records)
	return r
}

func (r reading) String() string {
	s := strings.Join(r.chain, " ")
	for _, x := range r.records {
		s += fmt.Sprintf(" %v/%d", x.Addr, int(x.TTL.Seconds()))
	}
	return strings.TrimSpace(s)
}

func readAnswer(t testing.TB, b []byte) (reading, bool) {
	t.Helper()
	var q question
	if !q.read(b) {
		return reading{}, false
	}
	a := new(answer)
	ok := a.read(b, &q)
	return a.reading(), ok
}

func TestAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		kind  uint16
		lines []string
		want  string
	}{
		"one address":         {dns.TypeA, []string{"a.x. 60 A 192.0.2.1"}, "192.0.2.1/60"},
		"several":             {dns.TypeA, []string{"a.x. 60 A 192.0.2.1", "a.x. 50 A 192.0.2.2"}, "192.0.2.1/60 192.0.2.2/50"},
		"case":                {dns.TypeA, []string{"A.X. 60 A 192.0.2.1"}, "192.0.2.1/60"},
		"IPv6":                {dns.TypeAAAA, []string{"a.x. 0 AAAA 2001:db8::1"}, "2001:db8::1/0"},
		"both":                {dns.TypeANY, []string{"a.x. 1 A 192.0.2.1", "a.x. 2 AAAA 2001:db8::1", "a.x. 3 TXT hi"}, "192.0.2.1/1 2001:db8::1/2"},
		"none":                {dns.TypeA, nil, ""},
		"foreign name":        {dns.TypeA, []string{"b.x. 60 A 192.0.2.1"}, ""},
		"chain":               {dns.TypeA, []string{"a.x. 60 CNAME b.y.", "b.y. 30 CNAME c.z.", "c.z. 90 A 192.0.2.1"}, "b.y c.z 192.0.2.1/30"},
		"chain in disorder":   {dns.TypeA, []string{"c.z. 90 A 192.0.2.1", "b.y. 30 CNAME c.z.", "a.x. 60 CNAME b.y."}, "b.y c.z 192.0.2.1/30"},
		"chain in mixed case": {dns.TypeA, []string{"A.x. 60 CNAME B.y.", "b.Y. 30 CNAME C.z.", "c.Z. 90 A 192.0.2.1"}, "b.y c.z 192.0.2.1/30"},
		"chain without end":   {dns.TypeA, []string{"a.x. 60 CNAME b.y."}, "b.y"},
		"loop":                {dns.TypeA, []string{"a.x. 60 CNAME b.y.", "b.y. 60 CNAME a.x.", "a.x. 5 A 192.0.2.1"}, "b.y a.x 192.0.2.1/5"},
		"to itself":           {dns.TypeA, []string{"a.x. 60 CNAME a.x.", "a.x. 70 A 192.0.2.1"}, "a.x 192.0.2.1/60"},
		"beside the chain":    {dns.TypeA, []string{"a.x. 60 CNAME b.y.", "c.y. 30 CNAME d.z.", "d.z. 90 A 192.0.2.1", "b.y. 9 A 192.0.2.2"}, "b.y 192.0.2.2/9"},
		"other class":         {dns.TypeA, []string{"a.x. 60 CH A 192.0.2.1", "a.x. 60 IN A 192.0.2.2"}, "192.0.2.2/60"},
		"DNAME":               {dns.TypeA, []string{"x. 60 DNAME y.", "a.x. 60 CNAME a.y.", "a.y. 60 A 192.0.2.1"}, "a.y 192.0.2.1/60"},
		"signed":              {dns.TypeA, []string{"a.x. 60 A 192.0.2.1", "a.x. 60 RRSIG A 8 2 60 20300101000000 20200101000000 1 x. AAAA"}, "192.0.2.1/60"},
		"dot in a label":      {dns.TypeA, []string{`a\.x. 60 A 192.0.2.1`}, ""},
		"mapped":              {dns.TypeAAAA, []string{"a.x. 60 AAAA ::ffff:192.0.2.1"}, "::ffff:192.0.2.1/60"},
		"a chain of 16":       {dns.TypeA, chainOf(16), strings.Join(namesOf(16), " ") + " 192.0.2.1/60"},
		"a chain of 17":       {dns.TypeA, chainOf(17), strings.Join(namesOf(16), " ")},
	} {
		b := pack(t, replyTo(t, query("a.x", c.kind), c.lines...))
		got, ok := readAnswer(t, b)
		if !ok || got.String() != c.want {
			t.Errorf("%s: %v, %v; want %s", name, got, ok, c.want)
		}
	}
	// Nothing is read out of an answer of another class.
	q := query("a.x", dns.TypeA)
	q.Question[0].Qclass = dns.ClassCHAOS
	if got, ok := readAnswer(t, pack(t, replyTo(t, q, "a.x. 60 IN A 192.0.2.1"))); !ok || got.String() != "" {
		t.Errorf("class CH: %v, %v", got, ok)
	}
}

func namesOf(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("n%d.x", i+1))
	}
	return out
}

func chainOf(n int) (lines []string) {
	last := "a.x"
	for _, name := range namesOf(n) {
		lines = append(lines, last+". 60 CNAME "+name+".")
		last = name
	}
	return append(lines, last+". 60 A 192.0.2.1")
}

// raw is an answer to the question a/A with records as bytes.
func raw(n byte, rest string) []byte {
	return append(append(header(1, n), "\x01a\x00\x00\x01\x00\x01"...), rest...)
}

func TestMalformedAnswers(t *testing.T) {
	const a = "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x01"
	for name, c := range map[string]struct {
		b    []byte
		want string // "-": it fails
	}{
		"as it should be":             {raw(1, a), "192.0.2.1/9"},
		"bytes behind it":             {raw(1, a+"x"), "192.0.2.1/9"},
		"fewer records":               {raw(2, a), "-"},
		"no record":                   {raw(1, ""), "-"},
		"short data":                  {raw(1, a[:len(a)-1]), "-"},
		"length of 3":                 {raw(1, "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x09\x00\x03\xc0\x00\x02"), "-"},
		"length of 16":                {raw(1, "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x09\x00\x100123456789abcdef"), "-"},
		"AAAA of 4":                   {raw(1, "\xc0\x0c\x00\x1c\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x01"), "-"},
		"TTL below zero":              {raw(1, "\xc0\x0c\x00\x01\x00\x01\x80\x00\x00\x09\x00\x04\xc0\x00\x02\x01"), "192.0.2.1/0"},
		"pointer forward":             {raw(1, "\xc0\xff\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x01"), "-"},
		"pointer to itself":           {raw(1, "\xc0\x13\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x01"), "-"},
		"pointer into header":         {raw(1, "\xc0\x00\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x01"), "-"},
		"pointer to another":          {raw(2, a+"\xc0\x13\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x02"), "192.0.2.1/9 192.0.2.2/9"},
		"CNAME longer than its name":  {raw(1, "\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x09\x00\x03\x01b\x00"+"x"), "b"},
		"CNAME with bytes behind":     {raw(1, "\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x09\x00\x04\x01b\x00x"), "-"},
		"CNAME shorter than its name": {raw(1, "\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x09\x00\x02\x01b\x00"), "-"},
		"name of a label too long":    {raw(1, "\x40\x00\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x01"), "-"},
		"unknown type is not read":    {raw(1, "\xc0\x0c\xff\x01\x00\x01\x00\x00\x00\x09\x00\x04\xff\xff\xff\xff"), ""},
	} {
		got, ok := readAnswer(t, c.b)
		if s := got.String(); ok != (c.want != "-") || ok && s != c.want {
			t.Errorf("%s: %q, %v; want %q", name, s, ok, c.want)
		}
	}
}

// TestEveryPrefix: of a message that is cut off anywhere nothing is believed.
func TestEveryPrefix(t *testing.T) {
	b := pack(t, replyTo(t, query("www.example.com", dns.TypeA),
		"www.example.com. 60 CNAME www.example.net.", "www.example.net. 60 A 192.0.2.1", "www.example.net. 60 A 192.0.2.2"))
	var q question
	var a answer
	for n := range b {
		cut := bytes.Clone(b[:n])
		whole := headerSize + len("\x03www\x07example\x03com\x00") + 4
		if got := q.read(cut); got != (n >= whole) {
			t.Fatalf("%d of %d bytes: question %v", n, len(b), got)
		} else if got && a.read(cut, &q) {
			t.Fatalf("%d of %d bytes: answer %v", n, len(b), a.reading())
		}
	}
	if !q.read(b) || !a.read(b, &q) {
		t.Fatal("the whole message")
	}
}

// TestManyRecords: what is beyond the bounds is left out, and takes no time.
func TestManyRecords(t *testing.T) {
	m := replyTo(t, query("a.x", dns.TypeA))
	for i := range 4000 {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "a.x.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{10, 0, byte(i >> 8), byte(i)}})
	}
	got, ok := readAnswer(t, pack(t, m))
	if !ok || len(got.records) != maxAddresses {
		t.Errorf("%d addresses, %v", len(got.records), ok)
	}
	m = replyTo(t, query("a.x", dns.TypeA))
	m.Compress = false
	for i := range 1000 {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "a.x.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{10, 0, byte(i >> 8), byte(i)}})
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: fmt.Sprintf("b%d.x.", i), Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "c.x."})
	}
	if got, ok := readAnswer(t, pack(t, m)); !ok || len(got.records) != maxOwners || len(got.chain) != 0 {
		t.Errorf("%d addresses, chain %v, %v", len(got.records), got.chain, ok)
	}
}

func TestReplies(t *testing.T) {
	for name, prepare := range map[string]func(*dns.Msg){
		"plain":    func(*dns.Msg) {},
		"EDNS":     func(m *dns.Msg) { m.SetEdns0(4096, false) },
		"DO":       func(m *dns.Msg) { m.SetEdns0(4096, true) },
		"no RD":    func(m *dns.Msg) { m.RecursionDesired = false },
		"CD":       func(m *dns.Msg) { m.CheckingDisabled = true },
		"case":     func(m *dns.Msg) { m.Question[0].Name = "wWw.EXAMPLE.com." },
		"class":    func(m *dns.Msg) { m.Question[0].Qclass, m.Question[0].Qtype = 0xfffe, 0xff01 },
		"update":   func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate; m.Ns = records(t, "a.x. 60 A 192.0.2.1") },
		"unwanted": func(m *dns.Msg) { m.Authoritative, m.RecursionAvailable, m.AuthenticatedData = true, true, true },
		"OPT behind others": func(m *dns.Msg) {
			m.Extra = records(t, "a.x. 60 A 192.0.2.1", "b.x. 60 TXT t")
			m.SetEdns0(1232, true)
		},
	} {
		for _, code := range []uint8{rcodeRefused, rcodeNoName, rcodeFailed} {
			in := query("www.example.com", dns.TypeAAAA)
			prepare(in)
			b := pack(t, in)
			b = append(make([]byte, 0, maxMessage), b...)
			var q question
			if !q.read(b) {
				t.Fatalf("%s: not read", name)
			}
			// As it is done in place, and from a copy.
			a, section := askedOf(b, &q), bytes.Clone(q.wire)
			out := appendReply(nil, a, section, code)
			if inPlace := appendReply(b[:0], a, q.wire, code); !bytes.Equal(out, inPlace) {
				t.Errorf("%s: in place it is\n%x, else\n%x", name, inPlace, out)
			}
			got := new(dns.Msg)
			if err := got.Unpack(out); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			want := new(dns.Msg)
			want.SetReply(in)
			want.Rcode, want.RecursionAvailable, want.CheckingDisabled = int(code), in.RecursionDesired, in.CheckingDisabled
			want.Opcode = in.Opcode
			want.RecursionDesired = in.RecursionDesired
			want.Extra = nil
			if o := in.IsEdns0(); o != nil {
				want.SetEdns0(payloadSize, o.Do())
			}
			if got.String() != want.String() {
				t.Errorf("%s:\n%v\nwant\n%v", name, got, want)
			}
			if len(out) > maxReply {
				t.Errorf("%s: %d bytes", name, len(out))
			}
		}
	}
}

// reference reads an answer by miekg/dns.
func reference(m *dns.Msg) (r reading) {
	if m.Question[0].Qclass != dns.ClassINET {
		return r
	}
	var aliases []*dns.CNAME
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok && rr.Header().Class == dns.ClassINET {
			aliases = append(aliases, c)
		}
	}
	ttl := func(h *dns.RR_Header) uint32 {
		if h.Ttl > 1<<31-1 {
			return 0
		}
		return h.Ttl
	}
	at, least := dnsrules.Normalize(m.Question[0].Name), uint32(1<<31-1)
	names := []string{at}
	for len(r.chain) < maxChain {
		i := slices.IndexFunc(aliases, func(c *dns.CNAME) bool { return dnsrules.Normalize(c.Hdr.Name) == at })
		if i < 0 {
			break
		}
		at = dnsrules.Normalize(aliases[i].Target)
		least = min(least, ttl(&aliases[i].Hdr))
		aliases = slices.Delete(aliases, i, i+1)
		r.chain, names = append(r.chain, at), append(names, at)
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || !slices.Contains(names, dnsrules.Normalize(h.Name)) {
			continue
		}
		var addr netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			addr, _ = netip.AddrFromSlice(rr.AAAA.To16())
		default:
			continue
		}
		r.records = append(r.records, fqdn.Record{Addr: addr, TTL: time.Duration(min(ttl(h), least)) * time.Second})
	}
	return r
}

// FuzzMessage reads any bytes as a question and as an answer.
func FuzzMessage(f *testing.F) {
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeHTTPS} {
		m := query("wWw.Example.com", kind)
		m.SetEdns0(1232, true)
		f.Add(pack(f, m))
	}
	f.Add(pack(f, replyTo(f, query("a.x", dns.TypeA), "a.x. 60 CNAME b.y.", "b.y. 30 CNAME c.z.", "c.z. 90 A 192.0.2.1", "c.z. 9 AAAA 2001:db8::1")))
	f.Add(pack(f, replyTo(f, query("a.x", dns.TypeMX), "a.x. 60 MX 10 b.x.", "a.x. 60 TXT hello", "b.x. 60 A 192.0.2.1")))
	f.Add(pack(f, replyTo(f, query(`a\.\000.x`, dns.TypeA), chainOf(3)...)))
	f.Add(raw(1, "\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x09\x00\x03\x01b\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		var q question
		var a answer
		ok := q.read(b)
		answered := ok && a.read(b, &q)
		if !bytes.Equal(b, given) {
			t.Fatal("reading changes the message")
		}
		if !ok {
			return
		}
		if len(q.wire) < 5 || len(q.wire) > maxQuestion || len(q.name) > maxNameText {
			t.Fatalf("section of %d bytes, name of %d", len(q.wire), len(q.name))
		}
		name, _, err := dns.UnpackDomainName(b, headerSize)
		if err != nil || dnsrules.Normalize(name) != string(q.name) || string(AppendName(nil, q.wire)) != strings.TrimSuffix(name, ".") && name != "." {
			t.Fatalf("%q is read as %q, by miekg/dns as %q, %v", q.wire, q.name, name, err)
		}
		// A response of our own can be read, and repeats the question.
		out := appendReply(nil, askedOf(b, &q), q.wire, rcodeRefused)
		var again question
		if !again.read(out) || !bytes.Equal(again.wire, q.wire) || messageID(out) != messageID(b) || !isResponse(out) {
			t.Fatalf("the reply is %x", out)
		}
		if got := new(dns.Msg); got.Unpack(out) != nil || got.Rcode&0xf != rcodeRefused {
			t.Fatalf("the reply is read as %v", got)
		}
		if !answers(append([]byte(nil), out...), &again, askedOf(b, &q), q.wire) {
			t.Fatal("the reply does not answer the question")
		}
		if !answered {
			return
		}
		if len(a.records) > maxAddresses || len(a.chain) > maxChain {
			t.Fatalf("%d addresses, chain of %d", len(a.records), len(a.chain))
		}
		// What else is in the message is none of our business.
		for i := sectionAuthority; i <= sectionAdditional; i++ {
			given[4+2*i], given[5+2*i] = 0, 0
		}
		m := new(dns.Msg)
		if m.Unpack(given) != nil || len(m.Question) != 1 || len(m.Answer) > maxAliases {
			return
		}
		if got, want := a.reading().String(), reference(m).String(); got != want {
			t.Fatalf("%x\nis read as %s\nby miekg/dns as %s", b, got, want)
		}
	})
}

// TestReadingAllocatesNothing: neither questions nor answers, once memory has
// grown.
func TestReadingAllocatesNothing(t *testing.T) {
	b := pack(t, replyTo(t, query("www.example.com", dns.TypeA),
		"www.example.com. 60 CNAME www.example.net.", "www.example.net. 60 A 192.0.2.1", "www.example.net. 60 A 192.0.2.2"))
	var q question
	var a answer
	out := make([]byte, 0, maxReply)
	if n := testing.AllocsPerRun(100, func() {
		if !q.read(b) || !a.read(b, &q) || len(a.records) != 2 {
			t.Fatal("not read")
		}
		out = appendReply(out[:0], askedOf(b, &q), q.wire, rcodeRefused)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRead(b *testing.B) {
	question1 := pack(b, query("www.example.com", dns.TypeA))
	answer1 := pack(b, replyTo(b, query("www.example.com", dns.TypeA),
		"www.example.com. 60 CNAME www.example.net.", "www.example.net. 60 A 192.0.2.1", "www.example.net. 60 A 192.0.2.2"))
	var q question
	var a answer
	b.Run("question", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			q.read(question1)
		}
	})
	b.Run("answer", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			q.read(answer1)
			a.read(answer1, &q)
		}
	})
}

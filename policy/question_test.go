package policy

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestParseQuestion(t *testing.T) {
	n := 8
	for _, c := range []struct {
		line string
		want Question
		err  string
	}{
		{`{"id":"7","from":"a/b","to":"10.0.0.1","port":80,"protocol":"TCP"}`, Question{ID: json.RawMessage(`"7"`), From: "a/b", To: "10.0.0.1", Port: "80", Protocol: "TCP"}, ""},
		{` {"to":"x/y","from":"a/b","port":"http","id":12} `, Question{ID: json.RawMessage(`12`), From: "a/b", To: "x/y", Port: "http"}, ""},
		{`{"from":"a/b","to":"c/d","protocol":"ICMP","icmpType":8,"port":null,"http":null}`, Question{From: "a/b", To: "c/d", Protocol: "ICMP", ICMPType: &n}, ""},
		{`{"from":"a/b","to":"c/d","http":{"method":"GET","path":"/x?y","host":"h","headers":{"k":["v","w"]}}}`,
			Question{From: "a/b", To: "c/d", HTTP: &HTTPRequest{"GET", "/x?y", "h", map[string][]string{"k": {"v", "w"}}}}, ""},
		{`{"from":"a/b","to":"1.2.3.4","names":["x.test","y.test"],"dns":{"name":"x","type":"A"}}`,
			Question{From: "a/b", To: "1.2.3.4", Names: []string{"x.test", "y.test"}, DNS: &DNSQuestion{"x", "A"}}, ""},
		{`{"from":"a/b","to":"c/d","names":null,"dns":null}`, Question{From: "a/b", To: "c/d"}, ""},
		{`{"id":"1","names":"x"}`, Question{ID: json.RawMessage(`"1"`)}, "names: not a list of strings"},
		{`{"id":"1","names":[7]}`, Question{ID: json.RawMessage(`"1"`)}, "names: not a list of strings"},
		{`{"id":"1","dns":"x"}`, Question{ID: json.RawMessage(`"1"`)}, "dns: not a JSON object"},
		{`{"id":"1","dns":{"class":"IN"}}`, Question{ID: json.RawMessage(`"1"`)}, `dns: unknown field "class"`},
		{`{"id":"1","dns":{"name":7}}`, Question{ID: json.RawMessage(`"1"`)}, "dns: name: not a string"},
		{``, Question{}, "not JSON"},
		{`nonsense`, Question{}, "not JSON"},
		{`[]`, Question{}, "not a JSON object"},
		{`"x"`, Question{}, "not a JSON object"},
		{`{"id":"1","from":"a/b"}`, Question{ID: json.RawMessage(`"1"`), From: "a/b"}, "to is missing"},
		{`{"id":"1","to":"a/b"}`, Question{ID: json.RawMessage(`"1"`), To: "a/b"}, "from is missing"},
		{`{"id":"1","from":"a/b","to":"c/d","Port":80}`, Question{ID: json.RawMessage(`"1"`)}, `unknown field "Port"`},
		{`{"id":"1","from":1}`, Question{ID: json.RawMessage(`"1"`)}, "from: not a string"},
		{`{"id":"1","port":1.5}`, Question{ID: json.RawMessage(`"1"`)}, "port: not a whole number"},
		{`{"id":"1","icmpType":"8"}`, Question{ID: json.RawMessage(`"1"`)}, "icmpType: not a whole number"},
		{`{"id":"1","http":{"verb":"GET"}}`, Question{ID: json.RawMessage(`"1"`)}, `http: unknown field "verb"`},
		{`{"id":"1","http":{"headers":{"a":"b"}}}`, Question{ID: json.RawMessage(`"1"`)}, "http: headers: not an object of lists"},
		{`{"id":"1","http":7}`, Question{ID: json.RawMessage(`"1"`)}, "http: not a JSON object"},
		{`{"id":"1","from":"a/b","from":"a/c"}`, Question{ID: json.RawMessage(`"1"`)}, `field "from" is there twice`},
		{`{"id":"1","from":"a/b","to":"c/d"} x`, Question{ID: json.RawMessage(`"1"`)}, "something follows"},
		{`{"id":"1","from":"a/b","to":`, Question{ID: json.RawMessage(`"1"`)}, "not JSON"},
	} {
		q, err := ParseQuestion([]byte(c.line))
		if c.err == "" {
			if err != nil || !reflect.DeepEqual(q, c.want) {
				t.Errorf("%s: %+v, %v", c.line, q, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.line, err, c.err)
		}
		if string(q.ID) != string(c.want.ID) {
			t.Errorf("%s: id %s, want %s", c.line, q.ID, c.want.ID)
		}
	}
}

// TestParseQuestionCut: no beginning of a question is a question, and none
// that holds the whole id loses it.
func TestParseQuestionCut(t *testing.T) {
	line := `{"id":"7","from":"a/b","to":"10.0.0.1","port":80,"protocol":"TCP","names":["a.b"],"dns":{"name":"x"},"http":{"method":"GET","headers":{"k":["v"]}}}`
	for i := range line {
		q, err := ParseQuestion([]byte(line[:i]))
		if err == nil {
			t.Errorf("%s is a question", line[:i])
		}
		if i >= len(`{"id":"7",`) && string(q.ID) != `"7"` {
			t.Errorf("%s lost its id: %s", line[:i], q.ID)
		}
	}
}

// FuzzParseQuestion: whatever the line, there is an answer, it is JSON, and it
// is an error exactly where the line is no question.
func FuzzParseQuestion(f *testing.F) {
	e := newEngine(f, "n1", world+"---\n"+policyYAML("cnp: ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]"))
	for _, line := range []string{
		`{"id":"7","from":"default/api","to":"default/web","port":80,"protocol":"TCP","http":{"method":"GET","path":"/a","headers":{"k":["v"]}}}`,
		`{"from":"default/web","to":"service:shop/api","port":"http"}`, `{"from":"entity:world","to":"10.0.0.11","protocol":"ICMP","icmpType":8}`,
		`{"from":"node:n2","to":"fd00::11","protocol":"47"}`, `{"from":"default/web","to":"9.9.9.9","names":["a.b"],"port":53,"dns":{"name":"x","type":"A"}}`, `{"id":`, `[]`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		q, err := ParseQuestion(line)
		a := Answer{ID: q.ID, Verdict: Failed}
		if err == nil {
			if a = e.Explain(q); a.Verdict == Failed && a.Error == "" {
				t.Error("an error without a text")
			}
		}
		if a.Verdict != Failed && (a.Egress == nil || a.Ingress == nil || a.Egress.Reason == "" || a.Ingress.Reason == "") {
			t.Errorf("%s: %+v", line, a)
		}
		if _, err := json.Marshal(a); err != nil {
			t.Errorf("%q: %v", line, err)
		}
	})
}

func TestQuestionsWithoutAnswer(t *testing.T) {
	e := newEngine(t, "n1", world)
	n, big := 8, 300
	for _, c := range []struct {
		q   Question
		err string
	}{
		{Question{From: "default/none", To: "default/web", Port: "80"}, "from: pod default/none is not known"},
		{Question{From: "default/web", To: "web", Port: "80"}, `to: "web" is neither`},
		{Question{From: "default/web", To: "ip:1.2.3", Port: "80"}, "is not an address"},
		{Question{From: "default/web", To: "fe80::1%eth0", Port: "80"}, "is not an address"},
		{Question{From: "default/web", To: "node:none", Port: "80"}, `node "none" is not known`},
		{Question{From: "default/web", To: "service:shop/none", Port: "80"}, `service "shop/none" is not known`},
		{Question{From: "service:shop/api", To: "default/web", Port: "80"}, "flows don't come from a service"},
		{Question{From: "default/web", To: "service:shop/api", Port: "81"}, "service shop/api has no port 81"},
		{Question{From: "default/web", To: "service:shop/api", Port: "dns"}, "has no port named"},
		{Question{From: "entity:all", To: "default/web", Port: "80"}, "stands for no particular peer"},
		{Question{From: "entity:moon", To: "default/web", Port: "80"}, `entity "moon" is not known`},
		{Question{From: "default/web", To: "default/api"}, "port is missing"},
		{Question{From: "default/web", To: "default/api", Port: "0"}, "not between 1 and 65535"},
		{Question{From: "default/web", To: "default/api", Port: "70000"}, "not between 1 and 65535"},
		{Question{From: "default/web", To: "default/api", Port: "none"}, "has no port named"},
		{Question{From: "default/web", To: "1.2.3.4", Port: "http"}, "has no port named"},
		{Question{From: "default/web", To: "1.2.3.4", Port: "+80"}, "has no port named"},
		{Question{From: "default/web", To: "1.2.3.4", Port: "1_000"}, "has no port named"},
		{Question{From: "default/web", To: "1.2.3.4", Port: "65536"}, "is not between"},
		{Question{From: "default/web", To: "default/api", Port: "80", Protocol: "ANY"}, "a flow has one"},
		{Question{From: "default/web", To: "default/api", Port: "80", Protocol: "XYZ"}, "is not known"},
		{Question{From: "default/web", To: "default/api", Port: "80", Protocol: "GRE"}, "the protocol has none"},
		{Question{From: "default/web", To: "default/api", Protocol: "ICMP"}, "icmpType is missing"},
		{Question{From: "default/web", To: "default/api", Protocol: "ICMP", ICMPType: &big}, "not between 0 and 255"},
		{Question{From: "default/web", To: "default/api", Protocol: "TCP", Port: "80", ICMPType: &n}, "the protocol is not ICMP"},
		{Question{From: "10.0.0.11", To: "fd00::12", Port: "80"}, "one is IPv4"},
		{Question{From: "default/web", To: "9.9.9.9", Port: "80", DNS: &DNSQuestion{Type: "A"}}, "dns: name is missing"},
		{Question{From: "default/web", To: "9.9.9.9", Port: "80", DNS: &DNSQuestion{Name: "x"}, HTTP: &HTTPRequest{}}, "a flow carries one of them"},
		{Question{From: "default/web", To: "9.9.9.9", Port: "80", Names: []string{"a.b", ""}}, `names: "" is no name`},
	} {
		c.q.ID = json.RawMessage(`"x"`)
		if a := e.Explain(c.q); a.Verdict != Failed || !strings.Contains(a.Error, c.err) || string(a.ID) != `"x"` {
			t.Errorf("%+v: %+v, want %q", c.q, a, c.err)
		}
	}
}

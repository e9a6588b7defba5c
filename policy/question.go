package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/weirnet/weir/policy/api"
)

// Question asks what becomes of one flow.
type Question struct {
	// ID is handed back with the answer: any JSON value, as it was written.
	ID json.RawMessage
	// From and To are "namespace/pod", an address, "entity:NAME" or
	// "node:NAME"; To may be "service:namespace/name". "pod:" and "ip:" may
	// stand before the first two.
	From, To string
	// Protocol is TCP (where it is empty), UDP, SCTP, ICMP, ICMPv6, or another
	// by name or number. ICMP to an IPv6 address is ICMPv6.
	Protocol string
	// Port is the destination port: a number, or a name that the destination
	// gives it. Protocols without ports have none.
	Port     string
	ICMPType *int
	HTTP     *HTTPRequest
	DNS      *DNSQuestion
	// Names are those that To, an address, stands for: what From learned of it.
	Names []string
	// NamesIn is the namespace whose policies alone the names count for: a server
	// told them that only policies of this namespace name. "": for all.
	NamesIn string
	// Others asks why the other rules did not decide.
	Others bool
}

// HTTPRequest is a request that the flow carries.
type HTTPRequest struct {
	Method  string              `json:"method"`
	Path    string              `json:"path"` // the target as sent, with the query
	Host    string              `json:"host"`
	Headers map[string][]string `json:"headers"`
}

// DNSQuestion is a DNS question that the flow carries. Rules are about its
// name; its type is not asked for.
type DNSQuestion struct {
	Name string `json:"name"` // as a master file has it, with or without final dot
	Type string `json:"type"`
}

// ParseQuestion reads a question from JSON, strictly: one object, known
// fields, the right types. With an error the question has its ID, if that much
// could be read.
func ParseQuestion(line []byte) (Question, error) {
	var q Question
	fields, err := readObject(line)
	if id, ok := fields["id"]; ok {
		q.ID = id
	}
	if err != nil {
		return q, err
	}
	for name, value := range fields {
		if err := q.set(name, value); err != nil {
			return q, err
		}
	}
	switch {
	case q.From == "":
		return q, errors.New("from is missing")
	case q.To == "":
		return q, errors.New("to is missing")
	}
	return q, nil
}

func (q *Question) set(name string, value json.RawMessage) error {
	var err error
	switch name {
	case "id":
	case "from":
		q.From, err = stringOf(value)
	case "to":
		q.To, err = stringOf(value)
	case "protocol":
		q.Protocol, err = stringOf(value)
	case "port":
		if len(value) > 0 && value[0] == '"' {
			q.Port, err = stringOf(value)
			break
		}
		if !isNull(value) {
			var n int
			n, err = intOf(value)
			q.Port = strconv.Itoa(n)
		}
	case "icmpType":
		if !isNull(value) {
			var n int
			n, err = intOf(value)
			q.ICMPType = &n
		}
	case "http":
		if !isNull(value) {
			q.HTTP, err = httpOf(value)
		}
	case "dns":
		if !isNull(value) {
			q.DNS, err = dnsOfJSON(value)
		}
	case "namesIn":
		q.NamesIn, err = stringOf(value)
	case "names":
		if !isNull(value) {
			if err = json.Unmarshal(value, &q.Names); err != nil {
				err = errors.New("not a list of strings")
			}
		}
	default:
		return fmt.Errorf("unknown field %q", name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func dnsOfJSON(value json.RawMessage) (*DNSQuestion, error) {
	fields, err := readObject(value)
	if err != nil {
		return nil, err
	}
	d := &DNSQuestion{}
	for name, value := range fields {
		var err error
		switch name {
		case "name":
			d.Name, err = stringOf(value)
		case "type":
			d.Type, err = stringOf(value)
		default:
			return nil, fmt.Errorf("unknown field %q", name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return d, nil
}

func httpOf(value json.RawMessage) (*HTTPRequest, error) {
	fields, err := readObject(value)
	if err != nil {
		return nil, err
	}
	r := &HTTPRequest{}
	for name, value := range fields {
		var err error
		switch name {
		case "method":
			r.Method, err = stringOf(value)
		case "path":
			r.Path, err = stringOf(value)
		case "host":
			r.Host, err = stringOf(value)
		case "headers":
			if err = json.Unmarshal(value, &r.Headers); err != nil {
				err = errors.New("not an object of lists of strings")
			}
		default:
			return nil, fmt.Errorf("unknown field %q", name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return r, nil
}

// readObject splits a JSON object into its fields. What could be read is
// returned with an error, too.
func readObject(text []byte) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	dec := json.NewDecoder(bytes.NewReader(text))
	tok, err := dec.Token()
	if err != nil {
		return fields, jsonError(err)
	}
	if tok != json.Delim('{') {
		return fields, errors.New("not a JSON object")
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return fields, jsonError(err)
		}
		name, ok := tok.(string)
		if !ok {
			return fields, errors.New("not JSON: a field has no name")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return fields, jsonError(err)
		}
		if _, ok := fields[name]; ok {
			return fields, fmt.Errorf("field %q is there twice", name)
		}
		fields[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return fields, jsonError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fields, errors.New("something follows the JSON object")
	}
	return fields, nil
}

func jsonError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("not JSON: it ends too early")
	}
	return fmt.Errorf("not JSON: %w", err)
}

func isNull(v json.RawMessage) bool { return string(v) == "null" }

func stringOf(v json.RawMessage) (string, error) {
	if len(v) == 0 || v[0] != '"' {
		return "", errors.New("not a string")
	}
	var s string
	err := json.Unmarshal(v, &s)
	return s, err
}

func intOf(v json.RawMessage) (int, error) {
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return 0, errors.New("not a whole number")
	}
	return n, nil
}

// protocol returns the number of the question's protocol. six: one end has an
// IPv6 address.
func (q *Question) protocol(six bool) (uint8, error) {
	name := strings.ToUpper(q.Protocol)
	switch name {
	case "":
		if q.ICMPType == nil {
			return protoTCP, nil
		}
		if six {
			return protoICMPv6, nil
		}
		return protoICMP, nil
	case "ICMP":
		if six {
			return protoICMPv6, nil
		}
		return protoICMP, nil
	case "ICMPV6":
		return protoICMPv6, nil
	case "ANY":
		return 0, errors.New("protocol: a flow has one, not ANY")
	}
	if n := api.Protocol(name).Numbers(); len(n) == 1 {
		return n[0], nil
	}
	if n, err := strconv.ParseUint(name, 10, 8); err == nil && n > 0 {
		return uint8(n), nil
	}
	return 0, fmt.Errorf("protocol: %q is not known", q.Protocol)
}

func hasPorts(proto uint8) bool {
	return proto == protoTCP || proto == protoUDP || proto == protoSCTP
}

// Answer tells what becomes of a flow.
type Answer struct {
	ID      json.RawMessage `json:"id,omitempty"`
	Verdict Verdict         `json:"verdict"`
	Egress  *Side           `json:"egress,omitempty"`
	Ingress *Side           `json:"ingress,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// Verdict is an answer in one word.
type Verdict string

const (
	Allowed Verdict = "allowed"
	Denied  Verdict = "denied"
	// NeedsRequest: the connection is made, and each request decides.
	NeedsRequest Verdict = "l7"
	// NotApplicable: no policy is enforced at that end.
	NotApplicable Verdict = "n/a"
	// Failed: there is no answer; Error says why.
	Failed Verdict = "error"
)

// Side is what one end's policies say: the source's egress, the destination's
// ingress.
type Side struct {
	Verdict Verdict `json:"verdict"`
	// Policy made the verdict; for a default deny, all that select the pod.
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"` // field path in it
	Reason string `json:"reason"`
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	// Others are the rules that did not decide, if the question asked.
	Others []Other `json:"others,omitempty"`
}

// Other is a rule that did not decide, and why.
type Other struct {
	RuleRef
	Reason string `json:"reason"`
}

// failed is the answer to a question that has none.
func failed(q Question, err error) Answer {
	return Answer{ID: q.ID, Verdict: Failed, Error: err.Error()}
}

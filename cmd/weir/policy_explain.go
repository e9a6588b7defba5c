package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/kube"
	"github.com/weirnet/weir/policy"
)

const policyExplainLong = `Explain says what becomes of a flow, which policy and rule decide it at either
end, and why the other rules that select the pod do not. It is the evaluator
that fills the kernel's tables, over the objects of a directory.

--from and --to are namespace/pod, an address, node:NAME or entity:NAME; --to may
also be service:namespace/name, which is judged by its backends. A pod is judged
as on its own node, and a node by its own policies; with --node-name only that one
and the node of a pod at the other end.

The verdict is allowed, denied, or l7: the connection is made and each request
decides; give one with --http-path and the like, or --dns-name. An end that no
policy is enforced at says n/a.

An outside address is what DNS taught the pod about it, too: name what it stands
for with --name.

With --batch, FILE (- for standard input) has one question a line, in JSON, and
the answers come in JSON, a line each and in order. A line that is no question
gets the verdict error.

  {"id":"7","from":"shop/web","to":"10.0.0.1","port":80,"protocol":"TCP"}
  {"id":"8","from":"shop/web","to":"shop/api","protocol":"ICMP","icmpType":8}
  {"id":"9","from":"shop/web","to":"service:shop/api","port":80,"protocol":"TCP",
   "http":{"method":"GET","path":"/x?y","host":"h","headers":{"k":["v"]}}}
  {"id":"10","from":"shop/web","to":"kube-system/dns","port":53,"protocol":"UDP",
   "dns":{"name":"x.example.test","type":"A"}}
  {"id":"11","from":"shop/web","to":"192.0.2.7","port":443,"protocol":"TCP",
   "names":["api.example.test"]}
  {"id":"12","from":"shop/web","to":"192.0.2.7","port":443,"protocol":"TCP",
   "names":["api.example.test"],"namesIn":"shop"}

  {"id":"7","verdict":"allowed|denied|l7|error",
   "egress":{"verdict","policy","rule","reason"},"ingress":{...}}

Policies that would be refused count as closed, and are named on standard error.

Exit status of one question: 0 allowed or l7, 1 denied, 2 no answer.`

// explainFlags are the flags of `weir policy explain`.
type explainFlags struct {
	objects, node, batch, output string
	nodeAddresses, failsafe      []string
	question                     policy.Question
	icmpType                     int
	method, path, host           string
	headers                      []string
	dns                          policy.DNSQuestion
}

// newPolicyExplainCommand is `weir policy explain`.
func newPolicyExplainCommand() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain --objects DIR (--from X --to Y | --batch FILE)",
		Short: "Say what becomes of a flow, and which rule decides",
		Long:  policyExplainLong,
		Example: `  kubectl get pods,ns,nodes,svc,endpointslices,netpol,cnp,ccnp,ciliumcidrgroups -A -o yaml > shop/all.yaml
  weir policy explain --objects shop/ --from shop/web --to shop/api --port 8080
  weir policy explain --objects shop/ --from shop/web --to service:shop/api --port http --http-path /v1/items
  weir policy explain --objects shop/ --from entity:world --to shop/web --port 80 -o json
  weir policy explain --objects shop/ --from shop/web --to service:kube-system/dns --dns-name api.example.test
  weir policy explain --objects shop/ --from shop/web --to 192.0.2.7 --name api.example.test --port 443
  weir policy explain --objects shop/ --batch questions.jsonl > answers.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.objects, "objects", "", "directory of objects: policies, pods, namespaces, nodes, services, endpoint slices")
	fl.StringVar(&f.question.From, "from", "", "who sends: namespace/pod, an address, entity:NAME or node:NAME")
	fl.StringVar(&f.question.To, "to", "", "who is meant: as --from, or service:namespace/name")
	fl.StringVar(&f.question.Port, "port", "", "destination port, by number or name")
	fl.StringVar(&f.question.Protocol, "protocol", "", "TCP, UDP, SCTP, ICMP, ICMPv6, or another by name or number (default TCP)")
	fl.IntVar(&f.icmpType, "icmp-type", 0, "type of an ICMP message")
	fl.StringVar(&f.method, "http-method", "GET", "method of a request")
	fl.StringVar(&f.path, "http-path", "/", "path of a request, with its query")
	fl.StringVar(&f.host, "http-host", "", "host of a request")
	fl.StringArrayVar(&f.headers, "http-header", nil, "header of a request, name=value (repeatable)")
	fl.StringVar(&f.dns.Name, "dns-name", "", "name of a DNS question (then --protocol is UDP and --port 53, unless given)")
	fl.StringVar(&f.dns.Type, "dns-type", "A", "type of a DNS question")
	fl.StringArrayVar(&f.question.Names, "name", nil, "DNS name that the address --to stands for (repeatable)")
	fl.StringVar(&f.question.NamesIn, "names-in", "", "a server told them that only policies of this namespace name")
	fl.StringVar(&f.node, "node-name", "", "node that pods without one, and entity:host, belong to")
	fl.StringSliceVar(&f.nodeAddresses, "node-address", nil, "address that node --node-name has on some interface, besides what its object says; weir status shows them (repeatable)")
	fl.StringSliceVar(&f.failsafe, "host-failsafe", []string{"default"}, "what policies for nodes are not asked about, as given to weir agent; none: they are about everything")
	fl.StringVar(&f.batch, "batch", "", "file of questions, one JSON object a line; - for standard input")
	fl.StringVarP(&f.output, "output", "o", "text", "text or json")
	return cmd
}

func (f *explainFlags) run(cmd *cobra.Command) error {
	single := f.question.From != "" || f.question.To != ""
	switch {
	case f.objects == "":
		return errors.New("--objects is missing: the directory of the cluster's objects")
	case f.output != "text" && f.output != "json":
		return fmt.Errorf("output %q is neither text nor json", f.output)
	case len(f.nodeAddresses) > 0 && f.node == "":
		return errors.New("--node-address is about the node of --node-name: give that, too")
	case f.batch != "" && single:
		return errors.New("--batch takes its questions from the file: leave --from and --to out")
	case f.batch == "" && (f.question.From == "" || f.question.To == ""):
		return errors.New("ask with --from and --to, or give --batch a file of questions")
	}
	engine, err := f.load(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if f.batch == "" {
		return f.one(cmd, engine)
	}
	in := cmd.InOrStdin()
	if f.batch != "-" {
		file, err := os.Open(f.batch)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	return explainBatch(engine, in, cmd.OutOrStdout())
}

// load reads the objects, and tells what is wrong with them.
func (f *explainFlags) load(ctx context.Context, warnings io.Writer) (*policy.Engine, error) {
	if ctx == nil {
		ctx = context.Background()
	}
	changes, report, err := kube.ReadDir(ctx, f.objects)
	if err != nil {
		return nil, fmt.Errorf("read objects: %w", err)
	}
	for _, p := range report.Problems {
		text := p.String()
		if p.Kind == kube.Refused {
			text += " (refused: what it selects is closed)"
		}
		fmt.Fprintln(warnings, "weir: "+text)
	}
	if !report.Complete {
		fmt.Fprintln(warnings, "weir: some objects could not be read: what is answered may not hold")
	}
	failsafe, err := policy.ParseFailsafe(f.failsafe)
	if err != nil {
		return nil, fmt.Errorf("--host-failsafe: %w", err)
	}
	engine, err := policy.NewEngine(policy.Options{NodeName: f.node, Failsafe: failsafe})
	if err != nil {
		return nil, err
	}
	host := &policy.HostAddresses{}
	for _, text := range f.nodeAddresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("--node-address %q is no address", text)
		}
		host.Addresses = append(host.Addresses, a)
	}
	changes = append(changes, policy.Change{Object: policy.Object{Kind: policy.KindHostAddresses}, Value: host})
	if _, err := engine.Apply(changes); err != nil {
		return nil, fmt.Errorf("apply objects: %w", err)
	}
	return engine, nil
}

// one answers the question of the flags.
func (f *explainFlags) one(cmd *cobra.Command, engine *policy.Engine) error {
	q := f.question
	q.Others = true
	set := cmd.Flags().Changed
	if set("icmp-type") {
		q.ICMPType = &f.icmpType
	}
	if set("dns-name") || set("dns-type") {
		q.DNS = &f.dns
		if !set("protocol") {
			q.Protocol = "UDP"
		}
		if !set("port") {
			q.Port = "53"
		}
	}
	if set("http-method") || set("http-path") || set("http-host") || set("http-header") {
		q.HTTP = &policy.HTTPRequest{Method: f.method, Path: f.path, Host: f.host, Headers: map[string][]string{}}
		for _, h := range f.headers {
			name, value, ok := strings.Cut(h, "=")
			if !ok {
				return fmt.Errorf("--http-header %q: want name=value", h)
			}
			q.HTTP.Headers[name] = append(q.HTTP.Headers[name], value)
		}
	}
	a := engine.Explain(q)
	if f.output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(a); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
	} else if a.Verdict != policy.Failed {
		if err := writeAnswer(cmd.OutOrStdout(), &q, &a); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
	}
	switch a.Verdict {
	case policy.Failed:
		if f.output == "json" {
			return exitCode(2)
		}
		return errors.New(a.Error)
	case policy.Denied:
		return exitCode(1)
	}
	return nil
}

// maxQuestion is the longest line of a batch.
const maxQuestion = 1 << 20

// explainBatch answers questions line by line. Empty lines are passed over.
func explainBatch(engine *policy.Engine, in io.Reader, out io.Writer) error {
	r := bufio.NewReaderSize(in, 64<<10)
	w := bufio.NewWriterSize(out, 64<<10)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		line, tooLong, err := readLine(r)
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(fmt.Errorf("read questions: %w", err), w.Flush())
		}
		if len(bytes.TrimSpace(line)) > 0 {
			var a policy.Answer
			q, perr := policy.ParseQuestion(line)
			switch {
			case tooLong:
				a = policy.Answer{ID: q.ID, Verdict: policy.Failed, Error: fmt.Sprintf("the line is longer than %d bytes", maxQuestion)}
			case perr != nil:
				a = policy.Answer{ID: q.ID, Verdict: policy.Failed, Error: perr.Error()}
			default:
				a = engine.Explain(q)
			}
			if werr := enc.Encode(a); werr != nil {
				return fmt.Errorf("write answers: %w", werr)
			}
		}
		if err != nil { // the end
			break
		}
		// Whoever asks one at a time waits for the answer.
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return fmt.Errorf("write answers: %w", err)
			}
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write answers: %w", err)
	}
	return nil
}

// readLine reads a line. Of one that is too long only the beginning is kept.
func readLine(r *bufio.Reader) (line []byte, tooLong bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if room := maxQuestion - len(line); len(part) > room {
			part, tooLong = part[:room], true
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, tooLong, err
		}
	}
}

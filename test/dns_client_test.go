package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// manyNames is a zone of n0.many.test, n1.many.test and so on.
func manyNames() string {
	var b strings.Builder
	for i := range 400 {
		for family, a := range manyAddrs(i) {
			fmt.Fprintf(&b, "n%d.many.test. 60 %s %s\n", i, []string{"A", "AAAA"}[family], a)
		}
	}
	return b.String()
}

func manyAddrs(i int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{198, 18, byte(2 + i/250), byte(1 + i%250)}),
		netip.MustParseAddr(fmt.Sprintf("2001:db8:2:2::%x", i+1)),
	}
}

// bigNames is a zone of answers of 4 KB.
func bigNames() string {
	var b strings.Builder
	for i := range 240 {
		fmt.Fprintf(&b, "a.big.test. 60 A 198.18.10.%d\n", i+1)
	}
	for i := range 140 {
		fmt.Fprintf(&b, "a.big.test. 60 AAAA 2001:db8:2:a::%x\n", i+1)
	}
	for i := range 15 {
		fmt.Fprintf(&b, "t.big.test. 60 TXT \"%02d%s\"\n", i, strings.Repeat("t", 240))
	}
	return b.String()
}

// inContainer runs a program at a place as a container's is run: with a
// resolv.conf of its own.
func (s *story) inContainer(at *place, resolvConf string, name string, args ...string) (string, error) {
	s.t.Helper()
	args, err := s.asContainer(resolvConf, name, args...)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	return at.Run(ctx, "", args[0], args[1:]...)
}

// asContainer is the command for that.
func (s *story) asContainer(resolvConf string, name string, args ...string) ([]string, error) {
	s.t.Helper()
	dir := s.t.TempDir()
	if err := errors.Join(write(dir, "resolv.conf", resolvConf), write(dir, "nsswitch.conf", "hosts: files dns\n")); err != nil {
		return nil, err
	}
	// Nothing that caches is asked.
	script := `cd "$1"; shift
mount --bind resolv.conf /etc/resolv.conf
if [ -e /etc/nsswitch.conf ]; then mount --bind nsswitch.conf /etc/nsswitch.conf; fi
for d in /run/nscd /run/systemd/resolve; do if [ -d $d ]; then mount -t tmpfs none $d; fi; done
exec "$@"`
	return append([]string{"unshare", "--mount", "sh", "-ec", script, "sh", dir, name}, args...), nil
}

// clients look a name up and fetch "/" from its addresses, each by another
// resolver; they return the addresses that answered, if they tell.
var clients = map[string]func(s *story, at *place, resolvConf, name string) ([]netip.Addr, error){
	"curl": func(s *story, at *place, resolvConf, name string) ([]netip.Addr, error) {
		out, err := s.inContainer(at, resolvConf, "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code} %{remote_ip}\n", "http://"+name+"/")
		if err == nil && !strings.HasPrefix(out, "200 ") {
			err = errors.New(out)
		}
		return nil, err
	},
	"getent": func(s *story, at *place, resolvConf, name string) ([]netip.Addr, error) {
		out, err := s.inContainer(at, resolvConf, "getent", "ahosts", name)
		return parseAddrs(out), err
	},
	"musl": func(s *story, at *place, resolvConf, name string) ([]netip.Addr, error) {
		out, err := s.inContainer(at, resolvConf, muslFetch(s.t), name)
		return parseAddrs(out), err
	},
	"go": func(s *story, at *place, resolvConf, name string) ([]netip.Addr, error) {
		out, err := s.inContainer(at, resolvConf, "env", fetchVariable+"="+name, "GODEBUG=netdns=go", os.Args[0])
		return parseAddrs(out), err
	},
}

// parseAddrs reads the addresses at the beginnings of lines, each once.
func parseAddrs(text string) (out []netip.Addr) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 {
			if a, err := netip.ParseAddr(f[0]); err == nil && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

var compileMusl sync.Once

// muslFetch is clients/fetch.c, linked with musl.
func muslFetch(t *testing.T) string {
	t.Helper()
	path := filepath.Join(scratch, "fetch")
	compiler := need(t, "musl-gcc")
	compileMusl.Do(func() {
		if out, err := exec.Command(compiler, "-static", "-O1", "-Wall", "-Werror", "-o", path, "clients/fetch.c").CombinedOutput(); err != nil {
			t.Errorf("compile clients/fetch.c: %v\n%s", err, out)
		}
	})
	return path
}

// fetchVariable makes a client of this program: see fetchByGo.
const fetchVariable = "WEIRTEST_FETCH"

// fetchByGo is what clients/fetch.c does, by Go's own resolver.
func fetchByGo(name string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	addrs, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, "ip", name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	status := 0
	for _, a := range addrs {
		a = a.Unmap()
		resp, err := http.Get("http://" + netip.AddrPortFrom(a, 80).String() + "/")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		fmt.Println(a)
	}
	return status
}

// connects tells whether a connection can be made.
func (p *place) connects(to netip.Addr, port uint16, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := p.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
	if err != nil {
		return err
	}
	return c.Close()
}

// TestClientsOfNames: every resolver that programs have gets through, to every
// server, and what it connects to at once is open; also where Kubernetes'
// resolv.conf has it try names first that no rule allows.
func TestClientsOfNames(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, program := range []string{"curl", "getent", "unshare"} {
		need(t, program)
	}
	muslFetch(t)
	s := tell(t, "setups/resolvers.txtar")
	s.must("start")
	n := 0
	var all sync.WaitGroup
	room := make(chan struct{}, 4)
	for _, server := range []string{"kube-system/near", "kube-system/far", "ns", "kube-system/kube-dns"} {
		for client, ask := range clients {
			for _, from := range []string{"shop/web", "shop/web2"} {
				for family := range 2 {
					for _, options := range []string{"", "use-vc"} {
						if options != "" && client == "musl" {
							continue // it knows only UDP
						}
						conf := fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:1 %s\n", s.places[server].addrs[family], options)
						name, want := fmt.Sprintf("n%d.many.test", n), manyAddrs(n)
						n++
						room <- struct{}{}
						all.Go(func() {
							defer func() { <-room }()
							got, err := ask(s, s.places[from], conf, name)
							if got == nil {
								got = want
							}
							if err != nil || !slices.Equal(got, want) {
								t.Errorf("%s in %s asks %s (IPv%d, %q): %v, %v", client, from, server, 4+2*family, options, got, err)
							}
							for _, a := range want {
								if err := s.places[from].connects(a, 80, patience); err != nil {
									t.Errorf("%s in %s asked %s (IPv%d, %q) for %s: %v", client, from, server, 4+2*family, options, name, err)
								}
							}
						})
					}
				}
			}
		}
	}
	all.Wait()
	if got := outcome(s.places["shop/web"].connects(manyAddrs(n)[0], 80, silence)); got != "dropped" {
		t.Errorf("an address that nobody asked for: %s", got)
	}

	search := func(when, client string) error {
		conf := fmt.Sprintf("search shop.svc.cluster.test svc.cluster.test cluster.test\nnameserver %s\noptions ndots:5 timeout:2 attempts:1\n",
			s.places["kube-system/kube-dns"].addrs[0])
		want := manyAddrs(n)
		got, err := clients[client](s, s.places["shop/web"], conf, fmt.Sprintf("n%d.many.test", n))
		n++
		if err == nil && got != nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%v, not %v", got, want)
		}
		if err != nil {
			err = fmt.Errorf("%s, with a search list: %s: %w", when, client, err)
		}
		return err
	}
	for _, client := range []string{"curl", "getent", "go"} { // musl ends its search at REFUSED
		if err := search("refused", client); err != nil {
			t.Error(err)
		}
	}
	w := s.nodes[1].Weir()
	w.Agent().Stop()
	if err := w.Start("--dns-denied=nxdomain"); err != nil {
		t.Fatal(err)
	}
	s.must("wait")
	for client := range clients {
		if err := search("no such name", client); err != nil {
			t.Error(err)
		}
	}
}

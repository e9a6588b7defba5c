package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/weirnet/weir/policy/dnsrules"
	"github.com/weirnet/weir/proxy/control"
)

// nameLine is one line of /fqdn: a name that pods asked for, or why there are
// no more.
type nameLine struct {
	Name string `json:"name"`
	// Namespace is the one for whose policies alone it counts.
	Namespace string        `json:"namespace,omitempty"`
	Addresses []nameAddress `json:"addresses,omitempty"`
	// Selectors of toFQDNs match it.
	Selectors []dnsrules.Selector `json:"selectors,omitempty"`
	// Pods asked for it, the latest few: namespace/name, or an address that no pod
	// has any more.
	Pods  []string `json:"pods,omitempty"`
	Error string   `json:"error,omitempty"`
}

type nameAddress struct {
	Address netip.Addr `json:"address"`
	// Expires is when the name stops standing for it, unless it is alive.
	Expires time.Time `json:"expires"`
	// Alive: the kernel sees a flow to it.
	Alive bool `json:"alive"`
	// Identity is what the kernel knows it as; 0: no name that it stands for
	// matters to any policy.
	Identity uint32 `json:"identity,omitempty"`
}

// nameLister asks the proxy.
type nameLister func(ctx context.Context, match string, each func(*control.Name) error) error

// serveNames lists the names that contain match.
func (s *agentServer) serveNames(w http.ResponseWriter, r *http.Request) {
	match := dnsrules.Normalize(r.URL.Query().Get("match"))
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	if err := s.names(r.Context(), match, func(n *control.Name) error { return enc.Encode(s.nameLine(n)) }); err != nil {
		_ = enc.Encode(nameLine{Error: err.Error()}) // the reader may have gone away
	}
}

func (s *agentServer) nameLine(n *control.Name) nameLine {
	line := nameLine{Name: n.Name, Namespace: n.Namespace}
	for _, a := range n.Addresses {
		addr, _ := netip.AddrFromSlice(a.Address)
		line.Addresses = append(line.Addresses, nameAddress{
			Address: addr, Expires: time.Unix(0, a.Expires), Alive: a.Alive, Identity: a.Identity,
		})
	}
	slices.SortFunc(line.Addresses, func(a, b nameAddress) int { return a.Address.Compare(b.Address) })
	for _, sel := range n.Selectors {
		line.Selectors = append(line.Selectors, control.NameSelectorFrom(sel))
	}
	for _, p := range n.Pods {
		addr, _ := netip.AddrFromSlice(p)
		text := addr.String()
		if namespace, name, ok := s.podAt(addr); ok {
			text = namespace + "/" + name
		}
		if !slices.Contains(line.Pods, text) { // it asked from another of its addresses
			line.Pods = append(line.Pods, text)
		}
	}
	return line
}

package e2e

import (
	"net"
	"net/netip"
	"strings"
)

const acrossServer = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: across}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: "/hostname|/clientip"}]}
`

const acrossClient = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: across}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: server}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: "/clientip|/"}]}
`

// across: a client here and a server on another node, each with HTTP rules, in
// both families where the cluster has them. Where the rules of both ends count,
// two proxies are in between, and the server still sees the client.
func (d *deployed) across() {
	server, client, other := d.pod("across", "server"), d.pod("across", "client"), d.pod("across", "other")
	if want := map[bool]int{false: 1, true: 2}[d.DualStack]; len(server.ips) != want {
		d.t.Fatalf("the server has addresses %v", server.ips)
	}
	check := func(what string, want map[string]int) {
		d.t.Helper()
		for family, ip := range server.ips {
			address := net.JoinHostPort(ip, "80")
			for path, status := range want {
				got, body, err := client.fetch(address, path)
				if got != status || err != nil {
					d.t.Errorf("%s: %s%s: %d, %v; want %d", what, address, path, got, err, status)
				}
				if path != "/clientip" || got != 200 {
					continue
				}
				seen, err := netip.ParseAddrPort(strings.TrimSpace(body))
				if err != nil || seen.Addr().Unmap() != netip.MustParseAddr(client.ips[family]) {
					d.t.Errorf("%s: the server sees %q, the client is %s", what, body, client.ips[family])
				}
			}
		}
	}
	check("without rules", map[string]int{"/hostname": 200, "/clientip": 200, "/": 200})
	d.apply(acrossServer)
	d.enforced()
	check("the server's rules", map[string]int{"/hostname": 200, "/clientip": 200, "/": 403})
	for _, ip := range server.ips {
		d.expect("another client", other.space, net.JoinHostPort(ip, "80"), false)
	}
	d.apply(acrossClient)
	d.enforced()
	check("both ends' rules", map[string]int{"/hostname": 403, "/clientip": 200, "/": 403})
}

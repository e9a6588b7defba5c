// Package test tells stories about Weir: whole nodes in network namespaces
// (test/node), the real program on them, real sockets, and what must be seen.
//
// A story is a file of stories/: a script, and the objects it speaks of, in
// txtar form, so that what a user reports can become one as it is. A line of
// the script is a command,
//
//	node a rp_filter=1 uplink-mtu=1400   a node (without any such line: node a)
//	pod shop/web app=web bridged on=b    a pod with labels, on the last node if not said
//	namespace shop team=a                a namespace with labels (those of pods are made anyhow)
//	forward a:30080 shop/web:80          a port of the node leads to a pod; "masquerade" may follow
//	world api 198.18.0.80 2001:db8:2::80
//	                                     these addresses of the outside are a place
//	link docker0 172.17.0.1 fd00:17::1 on=b
//	                                     a node gets an interface with these addresses, of which its
//	                                     object does not tell: a place; "link docker0 gone" ends it
//	service ns/svc IP4 IP6 ns/pod.. k=v  a cluster IP, for port 53 of these pods, with labels
//	dns unbound ns/pod names.zone        a real server of names at a place (or named, dnsmasq);
//	                                     forward=PLACE asks that one on
//	apply policy.yaml [as=other]         put a file of the story where the agent reads
//	remove policy.yaml
//	delete shop/web                      the pod and its object go
//	start [agent flags]                  start the agent and wait (the first probe does it, too)
//	wait                                 until all that was written is enforced
//	status TEXT                          `weir status` holds that text
//	explain off                          from here on, see below; "explain on" ends it
//
// or a probe, which opens a new flow, for IPv4 and for IPv6, and says what must
// come of it:
//
//	shop/web tcp shop/db:5432 => ok
//	shop/web GET outside:80/x?y header="X-A: b" => 403 policy="CiliumNetworkPolicy shop/web"
//	shop/web resolve ns/svc:53/api.test over=tcp => NOERROR addresses=api
//
// The places are pods (namespace/name), nodes (node a is host-a) and outside.
// All of them serve HTTP on the ports 80 and 8080, echo TCP on 5432 and 7000
// and UDP on 53 (not in stories with servers of names) and 7000. The verbs are
// tcp, udp, ping and resolve, or an HTTP method. Before "=>" may stand
// family=4|6, size=BYTES (of what is sent), header= and host=; type= and
// over=udp|tcp of questions, and believed=no if the answer teaches nothing, or
// believed=NAMESPACE if it counts for policies of that one only.
// What may come of it is ok, dropped (nothing came back, and a record of a drop
// says so), refused or reset, an HTTP status, or a code of DNS. After that, each
// name=value must hold: seen=PLACE (whose address the server saw),
// addresses=PLACE (that the answer has), and of the record of that flow:
// verdict, reason, policy, rule (or what it begins with), direction, layer;
// records=N: so many records of that request. `weir policy explain` is asked
// about each probe as well, and must answer what was seen.
package test

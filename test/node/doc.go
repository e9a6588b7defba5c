// Package node makes whole nodes out of network namespaces: what Weir sees on
// a real machine (pods behind veth pairs, routed or bridged, a host that
// forwards, masquerades and translates ports, other nodes, and a world beyond
// a router), with nothing of the machine it runs on touched or needed.
//
//	                       +-------------------- node a -----+
//	+-- pod --+  veth      | p1-web (gateway 10.77.1.1)      |
//	| eth0    |------------|        \                        |
//	+---------+            |         routes -- nat -- up0    |        +--- router ---+     +- outside -+
//	+-- pod --+            |        /                  \-----|--------| br0      wan |-----| eth0      |
//	| eth0    |------------| p2-db -- cni0 (10.77.1.129)     |   /----|              |     +-----------+
//	+---------+            +---------------------------------+   |    +--------------+
//	                       +-------------------- node b -----+   |
//	                       | ...                         up0 |---/
//	                       +---------------------------------+
//
// Addresses, with n the number of the node from 1:
//
//	pods of the node         10.77.n.0/24         fd77:0:n::/48
//	  routed (CNI ptp)       10.77.n.2 - .126     fd77:0:n:1::2 -
//	  bridged (CNI bridge)   10.77.n.130 - .254   fd77:0:n:2::2 -
//	node                     192.0.2.(10+n)       2001:db8::(10+n)
//	router                   192.0.2.1            2001:db8::1
//	outside                  198.51.100.2         2001:db8:1::2
//	  and all of             198.18.0.0/15        2001:db8:2::/48
//
// Pods reach each other with their own addresses, on any node, and the outside
// with their node's. The outside knows no pod addresses.
//
// Everything a Network makes carries its name: the namespaces NAME.host-a,
// NAME.pod-shop-web and so on (they are listed by `ip netns`), and the --state
// of the Weir that runs on a node. Close removes all of it; what a process that
// was killed left behind is removed by the next one (RemoveStale).
package node

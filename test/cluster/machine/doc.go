// Package machine makes something that programs take for a machine of their
// own: a process tree with network, mount, process, cgroup, host name and IPC
// namespaces, and a root directory that shows the host's files and keeps what
// is written there to itself. Several nodes of a Kubernetes cluster can run
// side by side this way, each with its own /run, /sys/fs/bpf, cgroup roots and
// CNI configuration, and nothing of the host is changed.
//
//	host                        machine
//	/                    ---->  /                  overlay, writes go to memory
//	/dev                 ---->  /dev               the host's
//	CGROUP of each hierarchy -> /sys/fs/cgroup/... a cgroup namespace
//	                            /proc, /sys        of its own namespaces
//	                            /run, /tmp, /var/lib/kubelet, /etc/cni, ...  memory
//	                            /sys/fs/bpf        a bpffs of its own
//
// Start is called on the host; it starts the init binary (machine/init), which
// sets all of this up from inside, then starts the machine's processes,
// restarts those that end, and reaps orphans. Its death ends every process of
// the machine, and with them go the mounts. What is left then is the cgroups,
// which Stop removes.
package machine

// Package cgroup owns the tree of control groups that pods live in: the QoS
// groups of the node, one group for each pod, their limits, and their removal.
//
// The names are the kubelet's, so that other tools find what they expect:
//
//	cgroupfs  ROOT/kubepods/pod<uid>                          Guaranteed
//	          ROOT/kubepods/burstable/pod<uid>
//	          ROOT/kubepods/besteffort/pod<uid>
//	systemd   kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid, - as _>.slice
//
// On cgroup v1 and on the hybrid of v1 and v2 the same path exists in every
// hierarchy, counted from the hierarchy's own root wherever the agent itself
// sits. What the host does not grant (a read-only hierarchy, a controller that
// is missing) is left out and said once: a pod without a CPU limit is better
// than no pod.
//
// Containers are put below a pod's group by the container runtime; the package
// never moves a process. Nothing is stored: the tree on the host is the record.
package cgroup

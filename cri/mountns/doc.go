// Package mountns owns the two pinned mount namespaces of the runtime.
//
// Both are pinned as nsfs bind mounts under STATE/ns, a directory that is
// bind-mounted on itself and private, because nsfs mounts must not propagate.
//
//   - "pins" holds nothing but a small tmpfs, on which the namespaces of
//     sandboxes are bind-mounted as <sandbox>/<kind>. A container's mount
//     namespace begins as a copy of the host's: pins kept on the host would be
//     copied, and later torn down, once for each of them.
//   - "oci" exists on hybrid hosts only (cgroup2 at /sys/fs/cgroup/unified
//     beside v1 controllers), where crun 1.8 refuses to run. It is a copy of the
//     host's mounts whose propagation stays shared with the host; only
//     /sys/fs/cgroup is private, and its "unified" unmounted. crun and conmon
//     are started inside it.
//
// The life of one pinned namespace; the last step commits, and a kill before it
// leaves nothing:
//
//	(none) ─unshare on a thread─▶ built ─bind to STATE/ns/<name>─▶ pinned ─Purge─▶ (none)
//
// A thread that has entered a namespace is locked to one goroutine and ends
// with it. It is never the process's first thread, whose namespaces are what
// others see as the process's own.
//
// It also owns detached mount trees (Tree), with idmapped ones among them, and
// the Workshop, a third namespace that is never pinned, in which overlays of such
// trees are put together.
package mountns

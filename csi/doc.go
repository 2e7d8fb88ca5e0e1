// Package csi owns the volumes of pods: setting them up, keeping the content of
// the rendered ones current, resolving subPaths, and taking everything down
// without ever touching data that is not the pod's.
//
// Volumes of kind image are the runtime's: nothing is set up for them here. Of
// what takes up disk and memory, Scratch tells where it lies and its limit;
// counting it is somebody else's.
//
// It is the front of three packages: csi/volume plans (pure), csi/local makes
// the node's own kinds, csi/mount makes the system calls. Volumes of CSI drivers
// will be a fourth, beside csi/local.
//
// Below ROOT/pods/<uid> it owns, in the kubelet's layout:
//
//	volumes/kubernetes.io~<kind>/<name>         the volumes
//	volume-subpaths/<volume>/<container>/<n>    binds of subPaths
//	plugins/kubernetes.io~empty-dir/<name>/ready  "this emptyDir was set up"
//	volumes.json                                "all volumes were set up", boot-scoped
//
// States of a pod's volumes; every arrow may be cut short and walked again:
//
//	absent ──Mount──▶ partial ──▶ mounted (volumes.json) ──Mount──▶ refreshed
//	   ▲                 │            │
//	   └─────Unmount─────┴────────────┘  (volumes.json first, mounts next, directories last)
package csi

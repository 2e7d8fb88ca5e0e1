// Package cni attaches sandboxes to networks through CNI plugins.
//
// It owns the choice of the network configuration (conflists in the
// configuration directories, else Berth's own default network), the calls of
// plugins with their deadlines, and the attachment records: what has been asked
// of plugins and must be asked back.
//
// An attachment's life; every arrow can be cut by a kill, and Delete walks from
// any point to the end:
//
//	(none) ─record written─▶ adding ─ADD answers─▶ added
//	   ▲                       │                     │
//	   └──record erased── deleted ◀──DEL answers─────┘
//
// A DEL that follows one that was cut off, or an ADD, also sweeps what plugins do
// not find again: leftover.go.
//
// Records of third-party networks are flushed to disk before ADD, because their
// addresses may outlive this machine's boot; those of the default network, whose
// leases are this machine's own and reclaimed by GC, are not.
//
// Specification: github.com/containernetworking/cni/blob/main/SPEC.md (1.1).
package cni

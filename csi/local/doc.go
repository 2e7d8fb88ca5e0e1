// Package local sets up the node's own kinds of volumes: emptyDir, hostPath, and
// those rendered from objects (configMap, secret, downwardAPI, projected).
//
// Layout, modes and ownership are the kubelet's, so that a container cannot tell
// the difference. Everything here may be interrupted after any instruction and
// done again: what is on disk is the record of how far it got.
package local

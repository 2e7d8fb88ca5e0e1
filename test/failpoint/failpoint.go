//go:build !failpoints

// Package failpoint marks the places where the agent may be killed: every
// record write and every external call of a pod's life. In an ordinary build
// Hit is empty and costs nothing; built with the tag "failpoints" it stops the
// process at a chosen place, so that a driver can kill it there (see hit.go).
//
// Names are string literals of the form "package/what", unique in the module,
// for example "cri/sandbox/record-write". test/crash enumerates them from the
// source, and fails for an external call that has none.
package failpoint

// Hit marks a place. name is a string literal, unique in the module.
func Hit(name string) {}

// Package streams tests exec, attach and port-forward of the runtime as clients
// over loopback see them, with real containers: what they carry, and that nothing
// stays of a client that is gone.
package streams

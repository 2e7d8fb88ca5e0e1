// Package ociruntime owns the running of crun or runc: finding a usable one,
// calling it with deadlines, and turning what it says on failure into one
// sentence and a kind.
//
// Containers are created by a monitor (cri/monitor) that calls the runtime
// itself; everything else that is done to a container by the runtime is done
// from here.
package ociruntime

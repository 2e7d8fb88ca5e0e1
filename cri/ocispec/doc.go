// Package ocispec turns what the Container Runtime Interface says of a
// container, what its image says, what its sandbox offers and what the host
// grants into the OCI runtime specification that crun or runc is given.
//
// It is pure: every fact about the host, the sandbox and the root filesystem is
// in Input, and Build reads nothing else. Two rules run through it. Fail closed:
// a protection that was asked for and cannot be given is an error. Clamp and
// say so: a privilege that the host does not grant to us is left out, and
// Result.Notes says what was left out.
//
// Annotations of pods and containers are never copied into the specification:
// OCI runtimes take orders from annotations (run.oci.*, org.systemd.property.*),
// and whoever writes a pod must not command the host.
package ocispec

// Package container owns containers: the record of each, its root filesystem,
// bundle and life. It calls the OCI runtime and the monitor; what a container's
// state is, it derives from facts.
//
// A container lives in STATE/containers/<id>:
//
//	record.json   the Record, written before anything else exists
//	rootfs/       its root filesystem, mounted by Rootfs
//	mounts/       images of image volumes; while it is being created, sources of
//	              bind mounts that the OCI runtime could not use as they are
//	bundle/       config.json, conmon's sockets and pid files, one directory an exec
//
// There is one way down, Remove, and it works on any prefix of a creation: a
// creation that fails, and one that an earlier agent was killed in, walk it.
package container

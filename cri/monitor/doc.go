// Package monitor owns conmon: one for each container. It parents the
// container, holds its standard streams, writes its log, and records its exit
// code, so that the agent may be killed or replaced at any time.
//
// What this package keeps for all containers together is one inotify instance
// on the directory of exit files and one epoll on a pidfd for each conmon.
// Both only hint: the exit file and the processes are the truth, and whoever
// gets a hint looks at them.
//
// # Starting one
//
// conmon begins by waiting for a byte on a pipe. If the agent dies, the pipe
// ends and conmon goes on, so whatever it would do must be impossible until its
// identity is on record. Hence the order of Create:
//
//	start conmon ─▶ Recorded(identity) ─▶ rename config.json into place ─▶ byte ─▶ read {"pid": N}
//
// A conmon let loose before the rename finds no config.json, fails and ends.
//
// conmon 2.1 is told its parent's pipes by _OCI_SYNCPIPE and _OCI_STARTPIPE. It
// lives in a cgroup of its own, which is neither the agent's nor the pod's: an
// OOM in the pod does not take it.
package monitor

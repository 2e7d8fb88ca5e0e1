// Package podinit owns the tiny static program that is the first one in a
// sandbox's namespaces.
//
// One clone makes all namespaces with it inside. It then waits for one byte
// from the agent, who meanwhile pins the namespaces and attaches the network,
// and does what can only be done from inside: the host name, the loopback
// device, the sysctls. It reports, and ends; unless it is the PID 1 of a shared
// PID namespace, where it stays to reap. If the agent dies before the byte is
// sent, it ends without having done anything.
//
//	cloned ─go─▶ settings ─┬─▶ ended (hold)
//	   │                   └─▶ reaping (reap) ─SIGTERM from outside, SIGKILL─▶ ended
//	   └─ agent gone ─▶ ended
//
// The program is built from src/init.c by src/build.sh and checked in; a test builds it
// again and compares.
package podinit

//go:generate src/build.sh .

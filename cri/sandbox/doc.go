// Package sandbox owns pod sandboxes: the record of each, its namespaces, its
// attachment to the network, its files, and the tiny init of a shared PID
// namespace. Containers are not its business, except that it tells them what
// to join.
//
// A sandbox is made in this order, and each step can be the last one before a
// kill; removal works on any prefix:
//
//	record (incomplete) ─▶ files, shm ─▶ clone ─▶ pins ─▶ init's cgroup ─▶ network
//	    ─▶ record (init) ─▶ settings from inside ─▶ record (complete)
//
// Ending takes the same way back: record (stopped), network, init, its cgroup,
// pins, record (released); shm, files, record.
package sandbox

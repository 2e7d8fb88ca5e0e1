// Package eviction owns the decision to end a pod for the sake of the node: here,
// because it uses more local storage than it said it would.
//
// Exceeded is pure. Watch measures every ten seconds, and only pods that declare
// a limit: a node without limits does nothing.
//
//	snapshots ─▶ those with limits ─▶ measured one after the other ─▶ Exceeded ─▶ Evict
package eviction

// Package probes owns the health checks of containers: when each is due, how it
// is made (HTTP, TCP, gRPC, exec), and telling its owner when a verdict changes.
//
// All probes of the node share one timer heap and one timer. A probe that waits
// costs no goroutine; one that runs borrows one from a bounded number. With no
// probes, nothing ever wakes.
//
//	                 ┌────────────── next period ──────────────┐
//	Set ─▶ waiting (in the heap) ─due─▶ queued ─free worker─▶ running ─▶ verdict changed? ─▶ Report
//	 │        ▲                                                  │
//	 │        └─ startup probe succeeded ── gated                └─ final verdict ─▶ held
//	 └─ target gone or replaced: canceled, its outcome is dropped
package probes

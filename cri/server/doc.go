// Package server owns the CRI v1 and berth.cri.v1 services over the runtime's
// parts: it validates, calls, and leaves errors to be mapped once. It holds no
// state of sandboxes or containers.
//
// What it does own is order where two parts are concerned (a sandbox's
// containers end before its network does), the chain of interceptors that both
// ways in share, and the delivery of container events:
//
//	gRPC on unix sockets ─┐
//	                      ├─▶ Chain: log, panic, errors, deadline, size ─▶ Server ─▶ sandbox, container, image
//	InProcess ────────────┘
package server

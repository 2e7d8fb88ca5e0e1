// Package stream serves exec, attach and port-forward to clients that speak
// SPDY or WebSocket, as Kubernetes' clients do.
//
// There are two ways in. CRI's: a request is answered with a URL on a loopback
// port, which holds a token that nobody can guess, works once and only for a
// minute. And the agent's own: ServeExec and its like answer a request that
// came over the agent's socket, with no port and no token.
//
// A client that leaves takes with it what it started: each connection is
// watched, also when nothing is read from it or written to it.
package stream

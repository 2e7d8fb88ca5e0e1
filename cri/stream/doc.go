// Package stream serves exec, attach and port-forward to clients that speak
// SPDY or WebSocket, as Kubernetes' clients do.
//
// There are two ways in. CRI's: a request is answered with a URL on a loopback
// port, which holds a token that nobody can guess, works once and only for a
// minute. And the agent's own: ServeExec and its like answer a request that
// came over the agent's socket, with no port and no token.
//
// What clients may speak:
//
//	exec, attach   SPDY/3.1 with v4, v3 or v2.channel.k8s.io
//	               WebSocket with v5, v4 or plain channel.k8s.io, binary or base64
//	port-forward   SPDY/3.1 with portforward.k8s.io
//	               WebSocket with SPDY/3.1+portforward.k8s.io (SPDY inside), or
//	               v4.channel.k8s.io for the ports that the request names
//
// A client that leaves takes with it what it started: each connection is
// watched, also when nothing is read from it or written to it, and a command
// that runs for it is killed with all that it started. containerd leaves such
// commands behind; nobody can reach them there any more.
//
// What a client sends and nobody reads is held back on its side of the
// connection: at most some MiB of it wait here, whatever the size of its frames.
package stream

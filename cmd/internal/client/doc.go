// Package client speaks the agent's HTTP API over its unix socket. It owns the
// form of requests and answers as the command line sees them, and turns what
// can go wrong on the way into errors that say what to do next.
package client

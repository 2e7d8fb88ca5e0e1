// Package server owns the HTTP API of the agent, served on a unix socket that
// only root may use. It shows what the agent knows (pods, events, problems,
// images) and passes on what is asked of it (apply, stop, logs, exec, pulls); it
// keeps no state and decides nothing about pods.
//
// Pods, events and errors are Kubernetes' own types; logs, exec, attach and
// port-forward are asked for as the kubelet's are. What answers a request piece
// by piece is one JSON object a line, each flushed at once.
package server

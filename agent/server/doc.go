// Package server owns the agent's HTTP API on a unix socket that only root may
// use: file mode 0600, and the kernel is asked who each peer is.
//
// Where the kubelet has a path for something, the path is the kubelet's
// (/pods, /containerLogs, /exec, /attach, /portForward, /healthz); the rest is
// below /berth/v1. Answers are JSON, streams are lines of JSON, errors are
// Kubernetes Status objects.
//
// The package shows and passes on; it holds no state of its own. Secrets are
// never part of an answer.
package server

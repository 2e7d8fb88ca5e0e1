// Package handlers tests runtime handlers with an OCI runtime that misbehaves,
// built from bad: each misbehaviour costs its own pod, whose error names the
// handler and what it did, while other pods run on; and nothing stays when the
// pod is removed.
package handlers

// Package wire puts the running agent together: it opens the parts in the order
// they need each other, translates between the types that they declare for
// themselves, and closes them in reverse. It decides nothing about pods.
//
//	state ─▶ mountns ─▶ images, OCI runtime, conmon ─▶ containers ─▶ network ─▶ sandboxes ─▶ CRI server (embedded.go)
//	records, cgroups, volumes, probes ─▶ runtime ─▶ dispatch ◀─ sources ─▶ API server (agent.go)
package wire

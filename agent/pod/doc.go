// Package pod is the vocabulary of the agent: identities, what is desired of a
// pod, what is observed of it, what may be done to it, and how doing can fail.
//
// It holds types and pure functions on them, and imports nothing that could do
// anything. Every value that crosses a goroutine boundary is immutable once
// handed over: take a copy before changing one.
package pod

package ociruntime

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Handler is what a configuration says of a runtime handler, beside the path of
// its OCI runtime.
type Handler struct {
	// Name is the handler's, as a RuntimeClass names it.
	Name string
	// Args stand before the subcommand, after our own.
	Args []string
	// Annotations are those of pods and containers that the runtime may see: whole
	// names, or beginnings that end in "*".
	Annotations []string
	// Defaults are annotations that each of its containers has.
	Defaults map[string]string
}

// With returns r as the OCI runtime of a configured handler. It is not trusted
// as far as crun and runc are: what it says it has done is looked at.
func (r *Runtime) With(h Handler) *Runtime {
	next := *r
	next.handler = h
	return &next
}

// Name names the runtime in a sentence: "crun", or "kata (runtime handler \"vm\")".
func (r *Runtime) Name() string {
	if r.handler.Name == "" || r.handler.Name == r.bin.Name {
		return r.bin.Name
	}
	return fmt.Sprintf("%s (runtime handler %q)", r.bin.Name, r.handler.Name)
}

// Doubted tells whether what the runtime says it has done is to be looked at.
func (r *Runtime) Doubted() bool { return r.handler.Name != "" }

// steering are the beginnings of annotations by which crun, and runc with
// systemd, take orders. No pattern covers them: each must be named in full.
var steering = []string{"run.oci.", "org.systemd.property.", "org.criu."}

// Annotations are those that the runtime may see of a pod's and, before them, of
// its container's.
func (r *Runtime) Annotations(pod, container map[string]string) map[string]string {
	out := maps.Clone(r.handler.Defaults)
	for _, from := range []map[string]string{pod, container} {
		for key, value := range from {
			if slices.ContainsFunc(r.handler.Annotations, func(p string) bool { return Allows(p, key) }) {
				if out == nil {
					out = map[string]string{}
				}
				out[key] = value
			}
		}
	}
	return out
}

// Allows tells whether the pattern of a handler lets an annotation pass.
func Allows(pattern, key string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	if !open {
		return key == pattern
	}
	return strings.HasPrefix(key, prefix) && !slices.ContainsFunc(steering, func(s string) bool { return strings.HasPrefix(key, s) })
}

// Failed makes an Error of a subcommand that ended with err after printing stderr.
func (r *Runtime) Failed(op, stderr string, err error) *Error {
	e := Classify(r.Name(), op, stderr)
	e.Err = err
	if Clean(stderr) == "" {
		e.Message = r.blame(fmt.Sprintf("failed to %s and said nothing (%v)", op, err))
	}
	return e
}

// Misbehaved makes an Error of something that the runtime did in op.
func (r *Runtime) Misbehaved(op, what string) *Error {
	return &Error{Op: op, Runtime: r.Name(), Kind: Misbehaved, Message: r.blame(what)}
}

// blame makes a sentence of what the runtime did, with what can be done about it.
func (r *Runtime) blame(what string) string {
	s := r.Name() + " " + what + "; see whether it works by itself (" + r.bin.Path + " --version)"
	if r.Doubted() {
		s += ", or give another one to the handler in the agent's configuration (runtime.handlers)"
	}
	return s
}

func clip(s string) string {
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return quote(strings.ToValidUTF8(s, "?"))
}

// Package runtime does what the planner decides: it turns each pod.Action into
// calls of CRI v1, and the answers and events of CRI into pod.Observed and hints.
// It decides nothing, and keeps no state about pods but the version of the
// inputs that their volumes were last rendered from.
//
// What it writes into the runtime (labels, annotations, log paths, names) is
// spelled as the kubelet spells it, so that crictl and other tools feel at home
// and a pod's spec can be rebuilt from the runtime alone (Known).
//
//	labels.go env.go fields.go security.go resources.go mounts.go dns.go hosts.go sandboxconfig.go: pure translations
//	sandbox.go image.go container.go hook.go volumes.go: one file for each family of operations
//	observe.go known.go watch.go: looking
//	errors.go: the one table from gRPC codes to pod.Kind and pod.Reason
//
// A container instance, as the operations here see it; every arrow is safe to
// walk again after a kill at any instruction:
//
//	none ──CreateContainer──▶ Created ──StartContainer──▶ Running ──▶ Exited ──RemoveContainer──▶ none
//	            (an instance of the same name and attempt is adopted, not made twice)
package runtime

// Package plan owns every decision about a pod: what is started, stopped and
// removed and in which order, how long a failure is waited out, when the pod has
// ended, what its status says, and how all that is explained to a person.
//
// Everything here is a function of its arguments. Decide turns the State of a
// pod into a Plan; Begin, Fold and their like turn what happened into the next
// State. The package reads no clock, writes no log and calls nobody, so each
// behaviour of a pod is a row of a table or a script in testdata.
//
// # The life of a pod
//
//	            ┌────────────────── setting up ──────────────────┐
//	accepted ─▶ volumes ─▶ sandbox ─▶ init containers ─▶ mains ─▶ running
//	   │          images (beside volumes and sandbox)                 │
//	   │                                                              │
//	   └─rejected─┐      ┌─ terminated, deadline, init failed, mains ended
//	              ▼      ▼
//	            ending: stop containers (sidecars last, newest first)
//	              │
//	              ▼
//	            outcome: final status recorded, nothing is started ever again
//	              │
//	              ▼
//	            sandbox stopped ─▶ volumes unmounted ─▶ cgroup and directory gone
//	              │ forgotten
//	              ▼
//	            containers, sandboxes, logs removed ─▶ Done
//
// A container whose rules say RestartAllContainers takes a running pod back to
// its first init container, in the same sandbox (rememberReset). What is added to
// a pod from outside its manifest, ephemeral containers and the conditions of
// readiness gates, is part of its record (State.AddEphemeral, State.SetCondition).
//
// There is one way down. Deletion, eviction, failure, a lost sandbox and a
// half-made start all walk it.
package plan

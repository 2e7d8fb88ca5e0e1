// Package source turns manifests into desired pods, and owns the ConfigMaps,
// Secrets, RuntimeClasses and PriorityClasses of the node.
//
// Manifests come from directories and single files (inotify), from standard
// input (read once), from URLs (conditional GET) and from the command line
// (documents applied with `berth run -f`, kept below ROOT/run). Whatever the
// way, they take the same road:
//
//	bytes ─▶ documents ─▶ tree with line numbers ─▶ strict check ─▶ defaults ─▶ validation, refusals ─▶ object
//	            │                                        │                          │
//	            └────────────── Problem (file, line, document, field path, what was expected)
//
// Defaults and validation of pods are agent/podspec's, as the API server has them;
// refusals are what only a cluster can do (RefusedFields).
//
// The readings of all files meet in one goroutine, the only writer of the Set's
// state, which merges them and delivers a full snapshot per source.
//
// A document that cannot be used never takes away what it gave before: the last
// good content of its file stays in force, across a restart of the agent too,
// while the problem is reported. Only the removal of a file or of a document
// from a readable file removes an object.
//
// A pod that names classes is taken in once they are there, and then keeps what
// they gave it, as if they had been copied into it: their handler, overhead,
// scheduling and priority. Until then an earlier version of it stays in force.
//
// On disk:
//
//	ROOT/run/<kind>_<namespace>_<name>.json  durable: one applied document and its pod's UID
//	ROOT/source/<hash of the file's path>.json  derived: what of that file is in force, and since when
//	ROOT/source/classes.json  derived: the classes that pods in force were taken in with
//
// Pods are static pods as the kubelet knows them, with one deviation: a pod
// keeps the name its manifest gives it, without the node's name as a suffix,
// because here no other node's pods can clash with it.
package source

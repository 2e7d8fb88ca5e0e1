// Package podspec holds the API's defaults and validation of a pod, as the API
// server of Kubernetes 1.36 applies them. It owns no state and looks at nothing but
// the pod it is given.
//
// Upstream keeps these rules in a module that nobody may import, so they are told
// here again: which value a field takes that was left out, and which values the API
// refuses, at which path and with which type of error. A module of its own under test
// generates pods and holds the package to upstream's answers. The paths are part of
// the API, odd ones included (a fault in the items of an envFrom is filed at the
// list); the comments say where the path is not the one that the field would suggest.
//
// The feature gates are those that are on by default. What the API takes and this
// node cannot do is for others to refuse: reading a manifest, admission and the
// runtime each say what they lack.
package podspec

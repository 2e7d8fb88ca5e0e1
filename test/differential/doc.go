// Package differential compares what Berth takes a pod for with what Kubernetes
// does: defaults and validation are this project's own (agent/podspec), and
// here, in a module of its own so that the binary never imports
// k8s.io/kubernetes, they are held against upstream's packages.
//
//	testdata/rich/*.yaml ─▶ seeds: together they reach every leaf of v1.PodSpec
//	        seed ─▶ 1-4 edits, chosen at random ─▶ pod ─┬─▶ upstream ─┐
//	                                                    └─▶ Berth ────┴─▶ difference? minimise, print
//
// A known difference stands in testdata/differences.txt with its reason; a line
// of it that no pod needs fails the test.
//
//	BERTH_DIFF=n         pods to make (default 5000)
//	BERTH_DIFF_SEED=n    another set of pods (default 1)
//	BERTH_DIFF_SHOW=n    minimised pods to print (default 5)
package differential

// Package kubelet runs the upstream kubelet, in a control plane of its own, on
// `berth runtime` (or, to compare, on containerd), and sees what users see: pods
// through kubectl. The test needs programs that test/peer/build.sh builds, and
// takes minutes; `make kubelet-on-berth` runs it.
//
// $BERTH_KUBELET_RUNTIME=containerd changes the runtime, $BERTH_KUBELET_RESULTS
// names a file that the outcome of every check is written to.
package kubelet

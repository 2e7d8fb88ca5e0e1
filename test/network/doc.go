// Package network tests the pod network of a whole runtime: `berth runtime` in a
// process of its own, driven over CRI as a kubelet does. What plugins and
// configurations do is tested in cni.
package network

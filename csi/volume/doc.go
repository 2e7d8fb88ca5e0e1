// Package volume decides, without touching anything, what the volumes of a pod
// are to be on the host: which of them are needed, where they lie, and which
// files the ones made from Kubernetes objects hold.
//
// Doing it is csi/local's part for the node's own kinds; drivers that speak the
// Container Storage Interface will take the other kinds from the same plan.
package volume

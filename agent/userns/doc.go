// Package userns allots ranges of the host's user and group IDs to the user
// namespaces of pods with hostUsers: false (KEP-127), and keeps them on disk.
//
// A range belongs to one pod, from before its sandbox is made until after its
// last container is gone. The record lies in the pod's directory, in the kubelet's
// format (pods/<uid>/userns), so that a node can change hands:
//
//	free ──Allot──▶ recorded (fsynced) ──▶ held ──Release──▶ record erased ──▶ free
//	          (killed: the record is found by the next Open, or there is none)
//
// Files on disk keep the IDs that containers see: a mount is shifted by the
// runtime, never the files. So a range says nothing about volumes, and a pod may
// get another one after a reboot.
package userns

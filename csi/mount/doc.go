// Package mount makes the system calls behind volumes: mounting, unmounting, and
// the removal of directory trees that may hold other people's mounts and links.
//
// It trusts nothing below a pod's directory: a container may have put symbolic
// links, mounts or a million nested directories there. Paths are therefore
// walked by file descriptor with openat2, and what is not plainly the pod's own
// file is left alone and reported.
package mount

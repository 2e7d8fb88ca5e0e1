// Package snapshot owns what happens to image layers on disk: unpacking one
// layer in a child of limited memory that is confined to the layer's
// directory (how a layer's stream becomes a directory is cri/snapshot/layer's),
// and the root filesystems of containers (one overlay mount each,
// its writable part and its reference in one directory below Rootfs' root).
//
// Which layers exist, how they chain, and when they go is owned by cri/image.
package snapshot

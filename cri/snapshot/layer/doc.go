// Package layer applies the tar stream of one image layer to a directory, in the
// form in which overlayfs stacks it.
//
// A layer says less than a directory tree: it may leave out directories that are
// in a layer below, link to files there, or write through a symbolic link of
// theirs. Still it is applied without the layers below where that is possible, so
// that all layers of an image are unpacked at the same time:
//
//	stream ──Apply(Alone)──▶ tree + Pending ──Settle(layers below)──▶ overlay layer
//	              │                                    │
//	              └── ErrNeedsLower ◀──────────────────┘
//	                       │
//	stream ──Apply(Over) on an overlay mounted over the layers below──▶ overlay layer
//
// Pending is what only the layers below can answer: the attributes of directories
// that the layer goes through without an entry of their own, and whether what it
// deletes is there. ErrNeedsLower is the answer to the rest, which is rare.
//
// The result is, seen through the overlay, what applying the layers one after the
// other to one directory gives, as the OCI image specification (layer.md) says it.
// Whiteouts act on what is below the layer only, wherever in the stream they stand.
//
// Apply changes the working directory and expects the layer's directory to be the
// root of the calling process, which is made for that layer alone. Settle needs
// neither: it never follows a link.
package layer

// Package image owns the images of a node: resolving and pulling them from
// registries, importing them from archives, unpacking their layers, their
// names, their removal, and the check that they are what they were.
//
// It keeps, below its root:
//
//	lock                  held while a Store is open; holds the owner's pid
//	metadata.db           names, content and layers, and what refers to what
//	content/              blobs by digest; downloads under way in content/ingest
//	layers-<n>/           unpacked layers; n grows when the databases are replaced
//	imported.json         what became of the files in the import folder
//	repair/               blobs that are fetched again
//	names.json            copy of the names, read only to rebuild a lost metadata.db
//	rw/                   containers' root filesystems (cri/snapshot)
//	*.corrupt-<unix>      databases that were set aside
//
// An image's life:
//
//	(nothing) ──content fetched──▶ blobs ──each layer──▶ staged ──in order──▶ chain ──name written──▶ image
//	    ▲                           │                     │                    │                       │
//	    └──── garbage collection ───┴─────────────────────┴────────────────────┴──── Remove ───────────┘
//
// A name is written last, so an image that has a name is complete. What was
// half-made when the process died is referred to by nothing and is collected
// after the next Open.
package image

// Package record owns the boot-scoped records of sandboxes and containers, and
// the reservation of their names.
//
// A record lives in DIR/<id>/record.json, beside whatever else its owner keeps
// for that object. It is written by temp and rename, without fsync: what it
// describes does not outlive the running kernel, and a killed agent loses
// nothing that write(2) has taken. The kernel's boot ID is inside, so that a
// record which did outlive a reboot is known to describe nothing.
//
// A copy, record.json.copy, is written after the record and removed before it.
// When a record is torn or scribbled on, the copy takes its place, so that a
// running pod does not have to be given up for want of its record.
//
// The life of DIR/<id>:
//
//	(nothing) ─mkdir─▶ stray ─rename─▶ recorded ─unlink─▶ stray ─rmdir─▶ (nothing)
//
// A stray directory has an ID and no readable record: its owner removes what
// there is of that ID by the ordinary path.
package record

package csi

import "github.com/berthd/berth/csi/volume"

// Scratch is a volume whose content takes up the node's own disk or memory: an
// emptyDir, or a configMap. It is what usage is counted of, against its limit and
// the pod's ephemeral storage.
type Scratch struct {
	Volume string
	Dir    string
	// InMemory says that Dir is a mount of memory: it counts against the pod's
	// memory, not against its ephemeral storage.
	InMemory bool
	// Limit is the emptyDir's sizeLimit in bytes; 0 if it has none.
	Limit int64
}

// Scratch lists the pod's volumes of that kind, in the pod's order, as of the
// last complete Mount, also one before a restart of the agent; nil if there was
// none. The slice must not be changed.
func (v *Volumes) Scratch(uid string) []Scratch {
	dir, err := v.dir(uid, "")
	if err != nil {
		return nil
	}
	k, _ := v.recollect(uid, dir)
	return k.scratch
}

func appendScratch(to []Scratch, one volume.Volume, path string) []Scratch {
	if one.Kind != volume.EmptyDir && one.Kind != volume.ConfigMap {
		return to
	}
	return append(to, Scratch{Volume: one.Name, Dir: path, InMemory: one.InMemory, Limit: one.Limit})
}

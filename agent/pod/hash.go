package pod

import (
	"encoding/json"
	"fmt"
	"hash/fnv"

	v1 "k8s.io/api/core/v1"
)

// SpecHash tells whether an instance was made from container c as it is now. It
// covers the name and the image only, as the kubelet's does: a change of them
// restarts the container, a change of anything else never does. Whoever creates
// a container writes it into Container.SpecHash.
func SpecHash(c *v1.Container) string {
	// Marshal of a map of strings cannot fail, and sorts its keys.
	fields, _ := json.Marshal(map[string]string{"name": c.Name, "image": c.Image})
	h := fnv.New32a()
	h.Write(fields)
	return fmt.Sprintf("%x", h.Sum32())
}

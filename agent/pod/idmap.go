package pod

// IDMapping maps the user and group IDs of a pod's user namespace to the host's:
// IDs ContainerID..ContainerID+Length-1 inside are HostID.. outside. The same
// mapping holds for users and for groups.
type IDMapping struct {
	HostID, ContainerID, Length uint32
}

// Host returns the host's ID for id inside the namespace; ok is false for an ID
// that the mapping does not cover.
func (m IDMapping) Host(id uint32) (host uint32, ok bool) {
	if id < m.ContainerID || id-m.ContainerID >= m.Length {
		return 0, false
	}
	return m.HostID + (id - m.ContainerID), true
}

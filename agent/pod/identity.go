package pod

import "strings"

// UID identifies one incarnation of a pod: changing a static pod's manifest
// makes a new UID under the same FullName.
type UID string

// FullName is "name_namespace", the identity that only one running pod may hold.
type FullName string

// NewFullName joins a pod's name and namespace.
func NewFullName(namespace, name string) FullName {
	return FullName(name + "_" + namespace)
}

// Split returns the namespace and name of n.
func (n FullName) Split() (namespace, name string) {
	name, namespace, _ = strings.Cut(string(n), "_")
	return namespace, name
}

// String renders n as people read it: "namespace/name".
func (n FullName) String() string {
	namespace, name := n.Split()
	return namespace + "/" + name
}

// ContainerName is a container's name, unique within its pod over init, main
// and ephemeral containers.
type ContainerName string

// ContainerID is a container's ID in the CRI runtime: one instance (attempt).
type ContainerID string

// SandboxID is a pod sandbox's ID in the CRI runtime.
type SandboxID string

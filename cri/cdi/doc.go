// Package cdi owns the devices of vendors that containers can ask for by name: it
// reads the specifications of the Container Device Interface
// (https://tags.cncf.io/container-device-interface) and edits a container's OCI
// specification as they say. A vendor's specification is the administrator's word:
// it may mount what it likes and run hooks. What names a device is not: of a
// container's request only CRI's own field, and the annotations that device plugins
// leave there, are heard; of an image nothing.
package cdi

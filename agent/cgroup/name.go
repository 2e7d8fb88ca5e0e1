package cgroup

import (
	"path"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
)

// Driver is who makes the groups.
type Driver string

// The drivers.
const (
	Cgroupfs Driver = "cgroupfs" // directories, made by the agent
	Systemd  Driver = "systemd"  // slices, made by systemd over D-Bus
)

const (
	kubepods  = "kubepods"
	podPrefix = "pod"
)

// name is a group's place, as the kubelet counts it: {"kubepods", "burstable", "pod1234"}.
type name []string

// rootName splits Config.Root ("/", "/a/b") into the first parts of every name.
func rootName(root string) name {
	var n name
	for _, part := range strings.Split(path.Clean("/"+root), "/") {
		if part != "" {
			n = append(n, part)
		}
	}
	return n
}

func (n name) join(parts ...string) name {
	return append(append(make(name, 0, len(n)+len(parts)), n...), parts...)
}

// fsPath is the group's path below the root of a hierarchy with driver cgroupfs.
func (n name) fsPath() string { return "/" + strings.Join(n, "/") }

// slice is the last part of the group's path with driver systemd: systemd reads
// a hyphen as a step down, so hyphens within a part become underscores.
func (n name) slice() string {
	parts := make([]string, len(n))
	for i, part := range n {
		parts[i] = strings.ReplaceAll(part, "-", "_")
	}
	return strings.Join(parts, "-") + ".slice"
}

// slicePath is the group's path below the root of a hierarchy with driver systemd.
func (n name) slicePath() string {
	p := "/"
	for i := range n {
		p = path.Join(p, n[:i+1].slice())
	}
	return p
}

func (n name) path(d Driver) string {
	if d == Systemd {
		return n.slicePath()
	}
	return n.fsPath()
}

// entry is the name of the group's own directory.
func (n name) entry(d Driver) string { return path.Base(n.path(d)) }

// podOf reads the pod's UID from the name of a directory below parent. Below
// systemd's slices a UID's hyphens cannot be told from underscores; UIDs of
// pods hold no underscores, so these become hyphens again.
func podOf(parent name, dir string, d Driver) (pod.UID, bool) {
	if d == Systemd {
		prefix := strings.TrimSuffix(parent.slice(), ".slice") + "-" + podPrefix
		rest, ok := strings.CutPrefix(dir, prefix)
		if !ok || !strings.HasSuffix(rest, ".slice") {
			return "", false
		}
		return pod.UID(strings.ReplaceAll(strings.TrimSuffix(rest, ".slice"), "_", "-")), true
	}
	rest, ok := strings.CutPrefix(dir, podPrefix)
	return pod.UID(rest), ok && rest != ""
}

// qosDir is the directory of a QoS class below kubepods; Guaranteed pods lie in kubepods itself.
func qosDir(c v1.PodQOSClass) string {
	switch c {
	case v1.PodQOSBurstable:
		return "burstable"
	case v1.PodQOSBestEffort:
		return "besteffort"
	}
	return ""
}

// qosClasses are all of them, in the order in which directories are searched.
var qosClasses = []v1.PodQOSClass{v1.PodQOSGuaranteed, v1.PodQOSBurstable, v1.PodQOSBestEffort}

func (t *Tree) qosName(c v1.PodQOSClass) name {
	n := t.root.join(kubepods)
	if d := qosDir(c); d != "" {
		n = n.join(d)
	}
	return n
}

func (t *Tree) podName(c v1.PodQOSClass, uid pod.UID) name {
	return t.qosName(c).join(podPrefix + string(uid))
}

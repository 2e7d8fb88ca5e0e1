package volume

import (
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Kind is a kind of volume, spelled as the field of a pod's volume that asks for it.
type Kind string

// The kinds that need nothing but the node.
const (
	EmptyDir    Kind = "emptyDir"
	HostPath    Kind = "hostPath"
	ConfigMap   Kind = "configMap"
	Secret      Kind = "secret"
	DownwardAPI Kind = "downwardAPI"
	Projected   Kind = "projected"
)

// plugins are the directory names the kubelet uses, which other software on a
// node (log collectors, backup) relies on.
var plugins = map[Kind]string{
	EmptyDir:    "kubernetes.io~empty-dir",
	ConfigMap:   "kubernetes.io~configmap",
	Secret:      "kubernetes.io~secret",
	DownwardAPI: "kubernetes.io~downward-api",
	Projected:   "kubernetes.io~projected",
}

// Volume is one volume as it is to be on the host.
type Volume struct {
	Name string
	Kind Kind
	// Dir is the volume's directory below the pod's; empty for HostPath, whose
	// directory is not ours.
	Dir string
	// Marker is, for EmptyDir, the file below the pod's directory that says the
	// volume was set up: from then on its mode belongs to the pod.
	Marker string
	// InMemory says that the content must never reach a disk: the directory is a
	// mount, of a tmpfs unless Huge.
	InMemory bool
	// Huge says that the memory is huge pages; Facts.PageSize tells their size.
	Huge bool
	// Limit is the sizeLimit of an EmptyDir in bytes, 0 if it has none.
	Limit int64
	// ReadOnly says that no container may write, whatever its mount asks for.
	ReadOnly bool
	// Rendered says that Render tells the content.
	Rendered bool
	// Source is the pod's own word.
	Source v1.VolumeSource
}

// ValidUID says whether uid can name a directory of a pod. UIDs come from
// manifests too, so they are not to be trusted as path elements.
func ValidUID(uid string) bool { return validElement(uid) }

func validElement(s string) bool {
	return s != "" && len(s) <= 255 && s != "." && !strings.HasPrefix(s, "..") && !strings.ContainsAny(s, "/\x00\n")
}

// Of returns the volumes of pod that any of its containers uses, in the pod's
// order: like the kubelet, a volume that nobody mounts is not set up. Volumes of
// kind image are the runtime's and not among them. A kind this node cannot serve
// is a failure of Code Invalid for that volume.
func Of(pod *v1.Pod) ([]Volume, Errors) {
	used := Used(pod)
	var all []Volume
	var failed Errors
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !used[v.Name] || v.Image != nil {
			continue
		}
		planned, err := plan(v)
		if err != nil {
			failed = append(failed, &Error{Op: OpSetUp, Volume: v.Name, Code: Invalid, Err: err})
			continue
		}
		all = append(all, planned)
	}
	return all, failed
}

// Used names the volumes that containers of pod mount, map or read variables from.
func Used(pod *v1.Pod) map[string]bool {
	used := map[string]bool{}
	visit := func(mounts []v1.VolumeMount, devices []v1.VolumeDevice, env []v1.EnvVar) {
		for i := range mounts {
			used[mounts[i].Name] = true
		}
		for i := range devices {
			used[devices[i].Name] = true
		}
		for i := range env {
			if from := env[i].ValueFrom; from != nil && from.FileKeyRef != nil {
				used[from.FileKeyRef.VolumeName] = true
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		visit(c.VolumeMounts, c.VolumeDevices, c.Env)
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		visit(c.VolumeMounts, c.VolumeDevices, c.Env)
	}
	for i := range pod.Spec.EphemeralContainers {
		c := &pod.Spec.EphemeralContainers[i]
		visit(c.VolumeMounts, c.VolumeDevices, c.Env)
	}
	return used
}

func plan(v *v1.Volume) (Volume, error) {
	if !validElement(v.Name) {
		return Volume{}, invalid("%q cannot be the name of a volume: use lower-case letters, digits and dashes", v.Name)
	}
	out := Volume{Name: v.Name, Source: v.VolumeSource}
	switch s := &v.VolumeSource; {
	case s.EmptyDir != nil:
		return planEmptyDir(out)
	case s.HostPath != nil:
		out.Kind = HostPath
		return out, nil
	case s.ConfigMap != nil:
		out.Kind = ConfigMap
	case s.Secret != nil:
		out.Kind, out.InMemory = Secret, true
	case s.DownwardAPI != nil:
		out.Kind, out.InMemory = DownwardAPI, true
	case s.Projected != nil:
		out.Kind, out.InMemory = Projected, true
	case s.GitRepo != nil:
		return Volume{}, invalid("gitRepo volumes run code of a repository as root and are not offered; clone in an init container into an emptyDir")
	default:
		return Volume{}, invalid("this kind of volume is not offered by this node; it has emptyDir, hostPath, configMap, secret, downwardAPI, projected and image")
	}
	out.Rendered, out.ReadOnly = true, true
	out.Dir = path.Join("volumes", plugins[out.Kind], out.Name)
	return out, nil
}

func planEmptyDir(out Volume) (Volume, error) {
	out.Kind = EmptyDir
	out.Dir = path.Join("volumes", plugins[EmptyDir], out.Name)
	out.Marker = path.Join("plugins", plugins[EmptyDir], out.Name, "ready")
	if limit := out.Source.EmptyDir.SizeLimit; limit != nil {
		out.Limit = max(limit.Value(), 0)
	}
	switch medium := out.Source.EmptyDir.Medium; {
	case medium == v1.StorageMediumDefault:
	case medium == v1.StorageMediumMemory:
		out.InMemory = true
	case isHuge(medium):
		out.InMemory, out.Huge = true, true
	default:
		return Volume{}, invalid("unknown storage medium %q; it is empty, Memory, HugePages or HugePages-<size>", medium)
	}
	return out, nil
}

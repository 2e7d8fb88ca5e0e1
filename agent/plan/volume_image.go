package plan

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// imageVolumes are the volumes of p that are images.
func imageVolumes(p *v1.Pod) []v1.Volume {
	var out []v1.Volume
	for _, v := range p.Spec.Volumes {
		if v.Image != nil {
			out = append(out, v)
		}
	}
	return out
}

// volumeImage is the reference of the image that is volume v of p.
func volumeImage(p *v1.Pod, v string) string {
	for _, o := range imageVolumes(p) {
		if o.Name == v {
			return o.Image.Reference
		}
	}
	return ""
}

func mountsVolume(c *v1.Container, v string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m v1.VolumeMount) bool { return m.Name == v })
}

// pullVolumeImages makes sure of the images of the pod's image volumes, and says
// whether m may start as far as they are concerned: all have been tried, and
// those that m mounts are here.
func (d *decision) pullVolumeImages(m *member) bool {
	ready := true
	for _, v := range imageVolumes(d.pod) {
		if d.Observed.VolumeImages[v.Name].Ref != "" {
			continue
		}
		a := pod.Action{Slot: pod.VolumeImageSlot(v.Name), Op: pod.OpPullImage, Volume: v.Name}
		d.start(a)
		f, failed := d.Failures[a.Slot]
		if failed && pullFailed(f) {
			if at := pullBackOffShown(f); d.Now.Before(at) {
				d.wake(at)
			}
		}
		ready = ready && failed && !mountsVolume(m.spec, v.Name)
	}
	return ready
}

// volumeImageSlot is where the image that volumeImageFailure tells of is pulled.
func (d *decision) volumeImageSlot(m *member) pod.Slot {
	for _, v := range imageVolumes(d.pod) {
		slot := pod.VolumeImageSlot(v.Name)
		if _, failed := d.Failures[slot]; failed && mountsVolume(m.spec, v.Name) {
			return slot
		}
	}
	return ""
}

// volumeImageFailure is the failure to pull an image volume that m mounts.
func (d *decision) volumeImageFailure(m *member) (image string, f pod.Failure, ok bool) {
	if len(d.Failures) == 0 {
		return "", pod.Failure{}, false
	}
	for _, v := range imageVolumes(d.pod) {
		if f, failed := d.Failures[pod.VolumeImageSlot(v.Name)]; failed && mountsVolume(m.spec, v.Name) {
			return v.Image.Reference, f, true
		}
	}
	return "", pod.Failure{}, false
}

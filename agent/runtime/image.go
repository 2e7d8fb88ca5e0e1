package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// withDefaultTag adds ":latest" to a reference that names neither tag nor digest.
func withDefaultTag(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", &pod.Error{Op: opPull.what, Kind: pod.Invalid, Reason: pod.InvalidImageName,
			Err: fmt.Errorf("Failed to apply default image tag %q: couldn't parse image reference %q: %w", image, image, err)}
	}
	_, tagged := named.(reference.Tagged)
	_, digested := named.(reference.Digested)
	if !tagged && !digested {
		return image + ":latest", nil
	}
	return image, nil
}

// wanted is an image as the pod's spec names it.
type wanted struct {
	image  string
	policy v1.PullPolicy
}

// wantedImage is that of the action's image volume or container.
func (t *task) wantedImage() (wanted, error) {
	if name := t.action.Volume; name != "" {
		v := volumeOf(t.pod, name)
		if v == nil || v.Image == nil || v.Image.Reference == "" {
			return wanted{}, failAs(opPull, pod.Invalid, fmt.Errorf("volume %q names no image", name))
		}
		return wanted{v.Image.Reference, v.Image.PullPolicy}, nil
	}
	c := t.container()
	if c == nil {
		return wanted{}, failAs(opPull, pod.Invalid, fmt.Errorf("the pod has no container %q", t.action.Container))
	}
	return wanted{c.Image, c.ImagePullPolicy}, nil
}

// pullImage ensures the image of a container or of an image volume by its
// policy: Always asks the registry, IfNotPresent only for what is missing, Never
// not at all.
func (r *Runtime) pullImage(ctx context.Context, t *task) error {
	want, err := t.wantedImage()
	if err != nil {
		return err
	}
	image, err := withDefaultTag(want.image)
	if err != nil {
		return err
	}
	spec := &cri.ImageSpec{Image: image, Annotations: maps.Clone(t.pod.Annotations)}
	policy := want.policy
	if policy == "" { // defaulting's rule, for pods rebuilt from the runtime
		policy = v1.PullIfNotPresent
		if strings.HasSuffix(image, ":latest") {
			policy = v1.PullAlways
		}
	}
	if policy != v1.PullAlways {
		have, err := r.imageStatus(ctx, spec)
		if err != nil {
			return fail(opInspect, fmt.Errorf("Failed to inspect image %q: %w", image, err))
		}
		if have != nil {
			t.result.Image = pod.Image{Ref: have.Id, Size: int64(have.Size)}
			return nil
		}
		if policy == v1.PullNever {
			return &pod.Error{Op: opPull.what, Kind: pod.NotFound, Reason: pod.ErrImageNeverPull,
				//lint:ignore ST1005 the kubelet's words, which people search for
				Err: fmt.Errorf("Container image %q is not present with pull policy of Never", want.image)}
		}
	}
	return r.fetch(ctx, t, want.image, spec)
}

// volumeImages are the images of the image volumes that c mounts, as the runtime
// is to be told. What has not been ensured in this life of the agent is looked for.
func (r *Runtime) volumeImages(ctx context.Context, t *task, c *v1.Container) (map[string]*cri.ImageSpec, error) {
	var all map[string]*cri.ImageSpec
	for _, vm := range c.VolumeMounts {
		v := volumeOf(t.pod, vm.Name)
		if v == nil || v.Image == nil || all[vm.Name] != nil {
			continue
		}
		ref := t.observed.VolumeImages[vm.Name].Ref
		if ref == "" {
			image, err := withDefaultTag(v.Image.Reference)
			if err != nil {
				return nil, err
			}
			have, err := r.imageStatus(ctx, &cri.ImageSpec{Image: image})
			if err != nil {
				return nil, err
			}
			if have == nil {
				return nil, failAs(opCreate, pod.NotFound, fmt.Errorf("image %q of volume %q is not there any more", v.Image.Reference, vm.Name))
			}
			ref = have.Id
		}
		if all == nil {
			all = map[string]*cri.ImageSpec{}
		}
		all[vm.Name] = &cri.ImageSpec{Image: ref, UserSpecifiedImage: v.Image.Reference}
	}
	return all, nil
}

// imageStatus is nil for an image that is not there.
func (r *Runtime) imageStatus(ctx context.Context, spec *cri.ImageSpec) (*cri.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := r.CRI.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if gone(err) {
		return nil, nil
	}
	return resp.GetImage(), err
}

// fetch pulls, with each of the credentials that match in turn.
func (r *Runtime) fetch(ctx context.Context, t *task, image string, spec *cri.ImageSpec) error {
	if err := r.pulls.acquire(ctx); err != nil {
		return fail(opPull, err)
	}
	defer r.pulls.release()
	auths, missing := r.credentials(t.pod, spec.Image)
	if len(missing) > 0 {
		r.event(t, true, "FailedToRetrieveImagePullSecret",
			fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
	}
	r.event(t, false, pod.Pulling, fmt.Sprintf("Pulling image %q", image))
	if len(auths) == 0 {
		auths = []*cri.AuthConfig{nil}
	}
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: t.pod.Name, Namespace: t.pod.Namespace, Uid: string(t.pod.UID)},
		Labels:   sandboxLabels(t.pod), Annotations: sandboxAnnotations(t.pod, t.desired.Source),
	}
	var failed error
	for _, auth := range auths {
		failpoint.Hit("agent/runtime/pull-image")
		resp, err := r.CRI.PullImage(ctx, &cri.PullImageRequest{Image: spec, Auth: auth, SandboxConfig: config})
		failpoint.Hit("agent/runtime/pull-image-done")
		if err == nil {
			return r.pulled(ctx, t, spec, resp.ImageRef)
		}
		if failed = errors.Join(failed, err); ctx.Err() != nil {
			break
		}
		if kindOf(err) != pod.Denied {
			failed = err // it is not for want of credentials
			break
		}
	}
	if ctx.Err() != nil {
		failed = ctx.Err()
	}
	return fail(opPull, failed)
}

func (r *Runtime) pulled(ctx context.Context, t *task, spec *cri.ImageSpec, ref string) error {
	t.result.Image = pod.Image{Ref: ref, Pulled: true}
	have, err := r.imageStatus(ctx, spec)
	if err != nil {
		return fail(opInspect, err)
	}
	if have == nil {
		return failAs(opInspect, pod.Unavailable, fmt.Errorf("image %q was pulled and is gone again; is the image store being cleaned?", spec.Image))
	}
	t.result.Image.Ref, t.result.Image.Size = have.Id, int64(have.Size)
	return nil
}

package wire

import (
	"context"
	"fmt"
	"io"

	"github.com/distribution/reference"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/runtime"
	"github.com/berthd/berth/agent/server"
)

// externalImages are an external runtime's images, as far as CRI can tell of them.
type externalImages struct{ x *external }

func (e externalImages) client() runtimeapi.ImageServiceClient {
	return runtimeapi.NewImageServiceClient(e.x.conn)
}

// cannot is the refusal of what CRI has no call for.
func (e externalImages) cannot(what, instead string) error {
	return &pod.Error{Kind: pod.Invalid, Err: fmt.Errorf("the container runtime %s %s cannot %s for the agent: %s", e.x.name, e.x.version, what, instead)}
}

func criImage(i *runtimeapi.Image) server.Image {
	return server.Image{ID: i.GetId(), Tags: i.GetRepoTags(), Digests: i.GetRepoDigests(), Size: int64(i.GetSize()), Pinned: i.GetPinned()}
}

func (e externalImages) List(ctx context.Context) ([]server.Image, error) {
	r, err := e.client().ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, runtime.Failed("list images", err)
	}
	out := make([]server.Image, 0, len(r.Images))
	for _, i := range r.Images {
		out = append(out, criImage(i))
	}
	return out, nil
}

// find returns the image called ref; a missing one is an error.
func (e externalImages) find(ctx context.Context, ref string) (*runtimeapi.Image, error) {
	r, err := e.client().ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return nil, runtime.Failed("look for image "+ref, err)
	}
	if r.GetImage() == nil {
		return nil, &pod.Error{Kind: pod.NotFound, Err: fmt.Errorf("the container runtime has no image %s: see `berth get images`", ref)}
	}
	return r.Image, nil
}

// Pull shows no progress: CRI tells none.
func (e externalImages) Pull(ctx context.Context, ref string, auth *server.Auth, progress func(server.Progress)) (server.Image, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return server.Image{}, &pod.Error{Kind: pod.Invalid, Err: fmt.Errorf("%q is not the name of an image: %w", ref, err)}
	}
	ref = reference.TagNameOnly(named).String()
	progress(server.Progress{Ref: ref, Phase: "downloading"})
	q := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}
	if auth != nil {
		q.Auth = &runtimeapi.AuthConfig{Username: auth.Username, Password: auth.Password}
	}
	if _, err := e.client().PullImage(ctx, q); err != nil {
		return server.Image{}, runtime.Failed("pull image "+ref, err)
	}
	i, err := e.find(ctx, ref)
	return criImage(i), err
}

func (e externalImages) Remove(ctx context.Context, ref string) error {
	i, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	_, err = e.client().RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}})
	if err != nil {
		return runtime.Failed("remove image "+ref, err)
	}
	return nil
}

func (e externalImages) Import(context.Context, io.Reader, func(server.Progress)) ([]server.Image, error) {
	return nil, e.cannot("import archives", "use its own command (for containerd: ctr -n k8s.io images import FILE)")
}

func (e externalImages) Verify(context.Context, bool, func(server.Progress)) ([]server.Damaged, error) {
	return nil, e.cannot("verify images", "use its own command (for containerd: ctr -n k8s.io content ls and images check)")
}

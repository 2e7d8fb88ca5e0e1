package wire

import (
	"context"
	"io"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"google.golang.org/grpc"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/server"
	"github.com/berthd/berth/cri/image"
)

// images is image.Store as agent/server wants it.
type images struct{ *image.Store }

var imageKinds = map[image.Code]pod.Kind{
	image.CodeInvalidReference: pod.Invalid, image.CodeBadImage: pod.Invalid, image.CodeBadArchive: pod.Invalid,
	image.CodeNotFound: pod.NotFound, image.CodeTagNotFound: pod.NotFound, image.CodeRepositoryNotFound: pod.NotFound, image.CodePlatform: pod.NotFound,
	image.CodeUnauthorized: pod.Denied,
	image.CodeUnavailable:  pod.Unavailable, image.CodeStalled: pod.Unavailable, image.CodeRateLimited: pod.Unavailable,
	image.CodeDigestMismatch: pod.Corrupt, image.CodeDamaged: pod.Corrupt,
	image.CodeDiskFull: pod.Exhausted, image.CodeLimit: pod.Exhausted,
	image.CodeHost: pod.Internal, image.CodeCanceled: pod.Canceled,
}

// imageError gives an image store's failure the agent's kind.
func imageError(err error) error {
	if err == nil {
		return nil
	}
	return &pod.Error{Kind: imageKinds[image.CodeOf(err)], Err: err}
}

func apiImage(i image.Image) server.Image {
	return server.Image{ID: string(i.ID), Tags: i.RepoTags, Digests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned}
}

func apiImages(all []image.Image) []server.Image {
	out := make([]server.Image, 0, len(all))
	for _, i := range all {
		out = append(out, apiImage(i))
	}
	return out
}

func apiProgress(to func(server.Progress)) func(image.Progress) {
	return func(p image.Progress) {
		out := server.Progress{Ref: p.Ref, Phase: string(p.Phase), Done: p.Done, Total: p.Total}
		for _, l := range p.Layers {
			out.Layers = append(out.Layers, server.Layer{Digest: l.Digest, Phase: string(l.Phase), Done: l.Done, Total: l.Total})
		}
		to(out)
	}
}

func (s images) List(context.Context) ([]server.Image, error) {
	return apiImages(s.Store.List()), nil
}

func (s images) Pull(ctx context.Context, ref string, auth *server.Auth, progress func(server.Progress)) (server.Image, error) {
	var a image.Auth
	if auth != nil {
		a = image.Auth{Username: auth.Username, Password: auth.Password}
	}
	i, err := s.Store.Pull(ctx, ref, a, apiProgress(progress))
	return apiImage(i), imageError(err)
}

func (s images) Import(ctx context.Context, archive io.Reader, progress func(server.Progress)) ([]server.Image, error) {
	all, err := s.Store.Import(ctx, archive, apiProgress(progress))
	return apiImages(all), imageError(err)
}

func (s images) Remove(ctx context.Context, ref string) error {
	if _, err := s.Get(ref); err != nil {
		return imageError(err)
	}
	return imageError(s.Store.Remove(ctx, ref))
}

func (s images) Verify(ctx context.Context, repair bool, progress func(server.Progress)) ([]server.Damaged, error) {
	found, err := s.Store.Verify(ctx, repair, apiProgress(progress))
	out := []server.Damaged{}
	for _, d := range found {
		out = append(out, server.Damaged{Digest: d.Digest, Why: d.Why, Images: d.Images})
	}
	return out, imageError(err)
}

// importedFiles tells what became of the import folder's files.
func importedFiles(f *image.Folder) func() []server.ImportedFile {
	return func() []server.ImportedFile {
		var out []server.ImportedFile
		for _, r := range f.Files() {
			i := server.ImportedFile{Name: filepath.Join(f.Dir(), r.Name), Error: r.Err}
			for _, id := range r.Images {
				i.Images = append(i.Images, string(id))
			}
			out = append(out, i)
		}
		return out
	}
}

// externalStreams asks an external runtime for the URLs of streams.
type externalStreams struct{ conn *grpc.ClientConn }

func (x externalStreams) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return runtimeapi.NewRuntimeServiceClient(x.conn).Exec(ctx, r)
}

func (x externalStreams) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return runtimeapi.NewRuntimeServiceClient(x.conn).Attach(ctx, r)
}

func (x externalStreams) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return runtimeapi.NewRuntimeServiceClient(x.conn).PortForward(ctx, r)
}

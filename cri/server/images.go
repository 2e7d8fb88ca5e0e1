package server

import (
	"context"
	"fmt"
	"time"

	"github.com/berthd/berth/cri/image"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errNoImage = fmt.Errorf("no image was named: %w", errdefs.ErrInvalidArgument)

// ListImages lists stored images, or those that the filter names.
func (s *Server) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: s.images(r.GetFilter())}, nil
}

func (s *Server) images(f *runtimeapi.ImageFilter) []*runtimeapi.Image {
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.cfg.Images.Get(ref)
		if err != nil {
			return nil
		}
		return []*runtimeapi.Image{criImage(img)}
	}
	var out []*runtimeapi.Image
	for _, img := range s.cfg.Images.List() {
		out = append(out, criImage(img))
	}
	return out
}

// ImageStatus tells about one image; an answer without one says that it is not stored.
func (s *Server) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, errNoImage
	}
	img, err := s.cfg.Images.Get(r.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if r.GetVerbose() {
		resp.Info, err = verbose(map[string]any{"imageSpec": map[string]any{"config": img.Config}})
	}
	return resp, err
}

// PullImage fetches an image and returns its ID.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, errNoImage
	}
	a := r.GetAuth()
	img, err := s.cfg.Images.Pull(ctx, r.GetImage().GetImage(), image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}, nil)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: string(img.ID)}, nil
}

// RemoveImage removes an image; one that is not stored counts as removed.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, errNoImage
	}
	if err := s.cfg.Images.Remove(ctx, r.GetImage().GetImage()); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells what images take; containers' layers are on the same file system.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u, err := s.cfg.Images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	fs := []*runtimeapi.FilesystemUsage{{
		Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes: &runtimeapi.UInt64Value{Value: u.Bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: fs, ContainerFilesystems: fs}, nil
}

func criImage(img image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: string(img.ID), RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: uint64(max(0, img.Size)),
		Username: img.Username, Pinned: img.Pinned, Spec: &runtimeapi.ImageSpec{Image: string(img.ID)},
	}
	if img.UID != nil {
		out.Uid = &runtimeapi.Int64Value{Value: *img.UID}
	}
	return out
}

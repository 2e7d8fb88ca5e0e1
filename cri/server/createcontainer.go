package server

import (
	"context"
	"fmt"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer makes a container in a ready sandbox, from a stored image.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if r.GetConfig().GetMetadata().GetName() == "" {
		return nil, fmt.Errorf("the container has no name: %w", errdefs.ErrInvalidArgument)
	}
	if r.GetConfig().GetImage().GetImage() == "" {
		return nil, fmt.Errorf("container %s names no image: %w", r.GetConfig().GetMetadata().GetName(), errdefs.ErrInvalidArgument)
	}
	if err := refuseRestore(r.GetConfig().GetImage().GetImage()); err != nil {
		return nil, err
	}
	box, err := s.sandboxID(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	img, err := s.cfg.Images.Get(r.GetConfig().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	var id string
	err = s.intoSandbox(ctx, box,
		func() error { id, err = s.create(ctx, box, r.GetConfig(), img); return err },
		func(ctx context.Context) error { return s.cfg.Containers.Remove(ctx, id) })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (s *Server) create(ctx context.Context, box sandbox.ID, config *runtimeapi.ContainerConfig, img image.Image) (string, error) {
	f, err := s.cfg.Sandboxes.Facts(box)
	if err != nil {
		return "", err
	}
	ns, err := s.cfg.Sandboxes.OpenNamespaces(box)
	if err != nil {
		return "", err
	}
	defer ns.Close()
	m := f.Config.GetMetadata()
	return s.cfg.Containers.Create(ctx, container.CreateRequest{
		Handler: f.Handler, Labels: f.Labels,
		Config: config, Pod: f.Config, ImageConfig: img.Config, Image: container.Image{ID: string(img.ID), Ref: imageRef(img)},
		Sandbox: ocispec.Sandbox{
			ID: string(box), Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
			Hostname: f.Hostname, CgroupParent: f.CgroupParent,
			NetworkNS: ns.Path(mountns.Net), IPCNS: ns.Path(mountns.IPC), UTSNS: ns.Path(mountns.UTS), PIDNS: ns.Path(mountns.PID),
			Users:   ocispec.Users{NS: ns.Path(mountns.User), UIDs: ocispec.IDRange(f.Users.UIDs), GIDs: ocispec.IDRange(f.Users.GIDs)},
			ShmPath: f.Shm, HostsPath: f.Hosts, HostnamePath: f.Files.Hostname, ResolvConfPath: f.ResolvConf,
		},
	})
}

// imageRef is how an image is named by its content.
func imageRef(img image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return string(img.ID)
}

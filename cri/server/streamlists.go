package server

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pageSize is how many bytes of items go into one message of a streamed list.
const pageSize = 1 << 20

// maxPage is how many items go into one message at most, however small.
const maxPage = 1000

// pages sends items as they come, in messages of about a megabyte.
type pages[T proto.Message] struct {
	send  func([]T) error
	items []T
	size  int
}

func (p *pages[T]) add(item T) error {
	p.items, p.size = append(p.items, item), p.size+proto.Size(item)
	if p.size < pageSize && len(p.items) < maxPage {
		return nil
	}
	return p.flush()
}

// flush sends what has been added since the last message, if anything.
func (p *pages[T]) flush() error {
	if len(p.items) == 0 {
		return nil
	}
	page := p.items
	p.items, p.size = nil, 0
	return p.send(page)
}

// sendPages sends all items.
func sendPages[T proto.Message](items []T, send func([]T) error) error {
	p := pages[T]{send: send}
	for _, item := range items {
		if err := p.add(item); err != nil {
			return err
		}
	}
	return p.flush()
}

// StreamPodSandboxes is ListPodSandbox in pages.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return sendPages(s.sandboxes(r.GetFilter()), func(page []*runtimeapi.PodSandbox) error {
		return to.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: page})
	})
}

// StreamContainers is ListContainers in pages.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, to grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return sendPages(s.containers(r.GetFilter()), func(page []*runtimeapi.Container) error {
		return to.Send(&runtimeapi.StreamContainersResponse{Containers: page})
	})
}

// StreamImages is ListImages in pages.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, to grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	return sendPages(s.images(r.GetFilter()), func(page []*runtimeapi.Image) error {
		return to.Send(&runtimeapi.StreamImagesResponse{Images: page})
	})
}

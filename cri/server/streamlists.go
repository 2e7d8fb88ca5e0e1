package server

import (
	"github.com/berthd/berth/cri/container"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pageSize is how many bytes of items go into one message of a streamed list.
const pageSize = 1 << 20

// sendPages sends all items, in messages of about a megabyte.
func sendPages[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n, size := 0, 0
		for n < len(items) && (n == 0 || size < pageSize) {
			size += proto.Size(items[n])
			n++
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
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

// StreamContainerStats is ListContainerStats in pages.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	f := r.GetFilter()
	all, err := s.containerStats(to.Context(), container.Filter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector()})
	if err != nil {
		return err
	}
	return sendPages(all, func(page []*runtimeapi.ContainerStats) error {
		return to.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: page})
	})
}

// StreamPodSandboxStats is ListPodSandboxStats in pages.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	all, err := s.allPodStats(to.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendPages(all, func(page []*runtimeapi.PodSandboxStats) error {
		return to.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: page})
	})
}

// StreamPodSandboxMetrics is not offered.
func (s *Server) StreamPodSandboxMetrics(*runtimeapi.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return errNoMetrics
}

// StreamImages is ListImages in pages.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, to grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	return sendPages(s.images(r.GetFilter()), func(page []*runtimeapi.Image) error {
		return to.Send(&runtimeapi.StreamImagesResponse{Images: page})
	})
}

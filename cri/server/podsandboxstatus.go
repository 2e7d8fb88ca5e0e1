package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/sandbox"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSandboxStatus tells about one sandbox, and its containers.
func (s *Server) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	id, err := s.sandboxID(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	now := time.Now() // before anything is looked at: nothing in the answer is older
	st, err := s.cfg.Sandboxes.Get(id)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status: sandboxStatus(st), ContainersStatuses: s.containerStatuses(string(id)), Timestamp: now.UnixNano(),
	}
	if r.GetVerbose() {
		resp.Info, err = s.sandboxDetails(id)
	}
	return resp, err
}

// sandboxDetails are the facts that CRI has no fields for.
func (s *Server) sandboxDetails(id sandbox.ID) (map[string]string, error) {
	f, err := s.cfg.Sandboxes.Facts(id)
	if err != nil {
		return nil, err
	}
	return verbose(map[string]any{
		"pid": f.InitPID, "notReadyBecause": f.Why, "hostname": f.Hostname, "namespaces": f.Join,
		"files": f.Files, "overhead": f.Config.GetLinux().GetOverhead(), "resources": f.Config.GetLinux().GetResources(), "cgroupParent": f.CgroupParent, "runtimeHandler": f.Handler,
	})
}

func verbose(facts map[string]any) (map[string]string, error) {
	b, err := json.Marshal(facts)
	if err != nil {
		return nil, fmt.Errorf("encoding verbose facts: %w", err)
	}
	return map[string]string{"info": string(b)}, nil
}

// ListPodSandbox lists sandboxes by ID prefix, state and labels.
func (s *Server) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.sandboxes(r.GetFilter())}, nil
}

func (s *Server) sandboxes(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	filter := sandbox.Filter{ID: f.GetId(), Labels: f.GetLabelSelector()}
	if f.GetState() != nil {
		ready := f.GetState().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
		filter.Ready = &ready
	}
	all := s.cfg.Sandboxes.Select(filter)
	out := make([]*runtimeapi.PodSandbox, 0, len(all))
	for _, st := range all {
		out = append(out, &runtimeapi.PodSandbox{
			Id: string(st.ID), Metadata: st.Config.GetMetadata(), State: sandboxState(st), CreatedAt: st.CreatedAt.UnixNano(),
			Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations(), RuntimeHandler: st.Handler,
		})
	}
	return out
}

func sandboxState(st sandbox.Status) runtimeapi.PodSandboxState {
	if st.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxStatus(st sandbox.Status) *runtimeapi.PodSandboxStatus {
	out := &runtimeapi.PodSandboxStatus{
		Id: string(st.ID), Metadata: st.Config.GetMetadata(), State: sandboxState(st), CreatedAt: st.CreatedAt.UnixNano(),
		Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations(), RuntimeHandler: st.Handler,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: st.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	for i, ip := range st.IPs {
		if i == 0 {
			out.Network.Ip = ip
			continue
		}
		out.Network.AdditionalIps = append(out.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return out
}

// containerStatuses are those of a sandbox's containers; one that goes away
// meanwhile is left out.
func (s *Server) containerStatuses(sandboxID string) []*runtimeapi.ContainerStatus {
	var out []*runtimeapi.ContainerStatus
	for _, c := range s.cfg.Containers.List(container.Filter{SandboxID: sandboxID}) {
		if st, err := s.cfg.Containers.Status(c.GetId()); err == nil {
			out = append(out, st)
		}
	}
	return out
}

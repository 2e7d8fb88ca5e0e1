package server

import (
	"context"
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version tells who serves.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "berth", RuntimeVersion: s.cfg.Version, RuntimeApiVersion: "v1"}, nil
}

// Status tells whether pods can be run, and what the runtime can do.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", s.cfg.Ready(ctx)),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", s.cfg.Sandboxes.NetworkStatus(ctx)),
		}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	for _, name := range s.handlers() {
		h := s.cfg.Handlers[name]
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{
			Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.NoUserNamespaces == nil},
		})
	}
	if !r.GetVerbose() {
		return resp, nil
	}
	devices, faults := s.cfg.Containers.CDIDevices()
	facts := map[string]any{
		"version": s.cfg.Version, "runtimes": s.handlers(), "unusableRuntimes": s.unusable(), "noUserNamespaces": s.noUserNamespaces(),
		"systemdCgroup": s.cfg.SystemdCgroup, "sandboxes": len(s.cfg.Sandboxes.List()), "containers": len(s.containers(nil)),
		"quarantinedSandboxRecords": s.cfg.Sandboxes.Quarantined(),
		"cdiDevices":                devices, "cdiFaults": faults, "quarantinedContainerRecords": s.cfg.Containers.Quarantined(),
	}
	if s.cfg.Details != nil {
		maps.Copy(facts, s.cfg.Details())
	}
	var err error
	resp.Info, err = verbose(facts)
	return resp, err
}

// handlers are the names of the usable runtime handlers, the default's first.
func (s *Server) handlers() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.cfg.Handlers)), func(name string) bool { return s.cfg.Handlers[name].Unusable != nil })
}

// unusable says of each handler that cannot be used, why.
func (s *Server) unusable() map[string]string {
	out := map[string]string{}
	for name, h := range s.cfg.Handlers {
		if h.Unusable != nil {
			out[name] = h.Unusable.Error()
		}
	}
	return out
}

// noUserNamespaces says of each handler that cannot have them, why.
func (s *Server) noUserNamespaces() map[string]string {
	out := map[string]string{}
	for name, h := range s.cfg.Handlers {
		if h.NoUserNamespaces != nil {
			out[name] = h.NoUserNamespaces.Error()
		}
	}
	return out
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: kind, Status: err == nil}
	if err != nil {
		c.Reason, c.Message = reason, err.Error()
	}
	return c
}

// RuntimeConfig tells which cgroup driver the runtime follows.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.cfg.SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

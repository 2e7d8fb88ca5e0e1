package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resizer is the part of CRI that changes the resources of what runs.
type Resizer interface {
	UpdateContainerResources(context.Context, *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error)
	UpdatePodSandboxResources(context.Context, *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error)
	ContainerStats(context.Context, *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error)
}

func (e external) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	return call[cri.UpdateContainerResourcesResponse](ctx, e, cri.RuntimeService_UpdateContainerResources_FullMethodName, r)
}
func (e external) UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	return call[cri.UpdatePodSandboxResourcesResponse](ctx, e, cri.RuntimeService_UpdatePodSandboxResources_FullMethodName, r)
}
func (e external) ContainerStats(ctx context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	return call[cri.ContainerStatsResponse](ctx, e, cri.RuntimeService_ContainerStats_FullMethodName, r)
}

var opResize = op{"resize pod", pod.ReasonError}

// annotationResources keeps, with each instance, the resources that it was
// created with: the runtime's own words have no place for a request of memory.
const annotationResources = "io.berthd.container.resources"

func resourcesAnnotation(c *v1.Container) string {
	text, _ := json.Marshal(v1.ResourceRequirements{Requests: c.Resources.Requests, Limits: c.Resources.Limits}) // maps of quantities: cannot fail
	return string(text)
}

// resourcesFrom fills in what c was created with, and what it is held to now.
func resourcesFrom(c *pod.Container, s *cri.ContainerStatus) {
	if text, ok := s.GetAnnotations()[annotationResources]; ok {
		r := &v1.ResourceRequirements{}
		if json.Unmarshal([]byte(text), r) == nil {
			c.Resources = r
		}
	}
	if l := s.GetResources().GetLinux(); l != nil {
		c.Limits = &pod.Limits{CPUShares: l.CpuShares, CPUQuota: l.CpuQuota, CPUPeriod: l.CpuPeriod, Memory: l.MemoryLimitInBytes}
	}
}

// change is one running instance that is to be held to other limits.
type change struct {
	container *pod.Container
	spec      *v1.Container
	want      *cri.LinuxContainerResources
}

func (c change) have() pod.Limits {
	if c.container.Limits == nil {
		return pod.Limits{}
	}
	return *c.container.Limits
}

// differs says that the runtime holds the instance to another limit of what.
func (c change) differs(what v1.ResourceName) bool {
	have := c.have()
	if c.container.Limits == nil {
		return true
	}
	if what == v1.ResourceMemory {
		return have.Memory != c.want.MemoryLimitInBytes
	}
	return have.CPUShares != c.want.CpuShares || max(have.CPUQuota, 0) != c.want.CpuQuota || have.CPUPeriod != c.want.CpuPeriod && c.want.CpuQuota != 0
}

// shrinks says that the instance gets less of what than it has.
func (c change) shrinks(what v1.ResourceName) bool {
	have, want := c.have().Memory, c.want.MemoryLimitInBytes
	if what == v1.ResourceCPU {
		have, want = c.have().CPUQuota, c.want.CpuQuota
	}
	return want > 0 && (have <= 0 || want < have)
}

// resize brings the pod's cgroup and its running containers to the resources
// that the pod has been granted: memory first, then CPU, and of each
//
//	pod cgroup raised ─▶ containers (decreases first) ─▶ pod cgroup lowered
//
// It goes by what the cgroups and the runtime show, so that it may be cut short
// anywhere and done again. A limit of memory is never set below what is in use:
// the kernel would kill for it.
func (r *Runtime) resize(ctx context.Context, t *task) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	changes := r.changes(t)
	if err := r.mayShrink(ctx, t, changes); err != nil {
		return failAs(opResize, pod.Unavailable, err)
	}
	tell := func(ctx context.Context) error { return r.tellSandbox(ctx, t) }
	for _, what := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceCPU} {
		failpoint.Hit("agent/runtime/resize-raise")
		if err := r.Cgroup.Resize(ctx, t.pod, what, true, tell); err != nil {
			return fail(opResize, err)
		}
		if err := r.update(ctx, changes, what); err != nil {
			return fail(opResize, err)
		}
		failpoint.Hit("agent/runtime/resize-lower")
		if err := r.Cgroup.Resize(ctx, t.pod, what, false, tell); err != nil {
			return fail(opResize, err)
		}
	}
	failpoint.Hit("agent/runtime/resize-done")
	done := &pod.Actuated{Generation: t.action.Generation, Pod: t.pod.Spec.Resources, Containers: map[pod.ContainerID]v1.ResourceRequirements{}}
	for _, c := range changes {
		done.Containers[c.container.ID] = c.spec.Resources
	}
	t.result.Actuated = done
	return nil
}

// changes lists the pod's running instances with what they are to be held to.
func (r *Runtime) changes(t *task) []change {
	var all []change
	for i := range t.observed.Containers {
		c := &t.observed.Containers[i]
		if c.State != pod.Running || c.SandboxID != t.action.SandboxID {
			continue
		}
		for _, list := range [][]v1.Container{t.pod.Spec.InitContainers, t.pod.Spec.Containers} {
			for j := range list {
				if list[j].Name == string(c.Name) {
					all = append(all, change{c, &list[j], r.cfg.containerResources(t.pod, &list[j])})
				}
			}
		}
	}
	return all
}

// mayShrink refuses limits of memory below what is in use.
func (r *Runtime) mayShrink(ctx context.Context, t *task, changes []change) error {
	var below []string
	if want, have, usage, ok := r.Cgroup.Memory(t.pod); ok && want < have && usage >= want {
		below = append(below, fmt.Sprintf("attempting to set pod memory limit (%d) below current usage (%d)", want, usage))
	}
	for _, c := range changes {
		if !c.differs(v1.ResourceMemory) || !c.shrinks(v1.ResourceMemory) {
			continue
		}
		resp, err := r.CRI.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: string(c.container.ID)})
		if gone(err) || status.Code(err) == codes.Unimplemented {
			continue
		} else if err != nil {
			return fmt.Errorf("read the memory usage of container %s: %w", c.container.Name, err)
		}
		if usage := int64(resp.GetStats().GetMemory().GetUsageBytes().GetValue()); usage >= c.want.MemoryLimitInBytes {
			below = append(below, fmt.Sprintf("attempting to set container %q memory limit (%d) below current usage (%d)", c.container.Name, c.want.MemoryLimitInBytes, usage))
		}
	}
	switch len(below) {
	case 0:
		return nil
	case 1:
		return errors.New("cannot decrease memory limits: " + below[0])
	}
	return fmt.Errorf("cannot decrease memory limits: [%s]", strings.Join(below, ", "))
}

// tellSandbox lets the runtime know before the pod's cgroup changes. Runtimes
// that do not want to know are older than the call.
func (r *Runtime) tellSandbox(ctx context.Context, t *task) error {
	req := &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: string(t.action.SandboxID)}
	req.Resources, req.Overhead = r.cfg.sandboxResources(t.pod)
	failpoint.Hit("agent/runtime/update-sandbox")
	_, err := r.CRI.UpdatePodSandboxResources(ctx, req)
	failpoint.Hit("agent/runtime/update-sandbox-done")
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return fail(opResize, err)
}

// update sets the containers' limits of what, decreases first: what they free
// the others may need within the pod's limit.
func (r *Runtime) update(ctx context.Context, changes []change, what v1.ResourceName) error {
	order := slices.Clone(changes)
	slices.SortStableFunc(order, func(a, b change) int { return cmp.Compare(rank(a, what), rank(b, what)) })
	for _, c := range order {
		if !c.differs(what) {
			continue
		}
		failpoint.Hit("agent/runtime/update-container")
		_, err := r.CRI.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: string(c.container.ID), Linux: only(c.want, what)})
		failpoint.Hit("agent/runtime/update-container-done")
		if gone(err) {
			continue // it ended meanwhile: its successor is created with these limits
		} else if err != nil {
			return fmt.Errorf("container %s: %w", c.container.Name, err)
		}
	}
	return nil
}

func rank(c change, what v1.ResourceName) int {
	if c.shrinks(what) {
		return 0
	}
	return 1
}

// only is the part of r that limits what; a limit that is taken away is -1.
func only(r *cri.LinuxContainerResources, what v1.ResourceName) *cri.LinuxContainerResources {
	if what == v1.ResourceMemory {
		out := &cri.LinuxContainerResources{MemoryLimitInBytes: r.MemoryLimitInBytes, MemorySwapLimitInBytes: r.MemorySwapLimitInBytes}
		if swap, ok := r.Unified[swapMax]; ok {
			out.Unified = map[string]string{swapMax: swap}
		}
		return out
	}
	out := &cri.LinuxContainerResources{CpuShares: r.CpuShares, CpuQuota: r.CpuQuota, CpuPeriod: r.CpuPeriod}
	if out.CpuQuota == 0 {
		out.CpuQuota = -1
	}
	return out
}

package runtime

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const observeTimeout = 20 * time.Second

// Observe asks the runtime and the volumes what there is of one pod.
//
// Observed.Images stays empty: an image is ensured before each start anyway, and
// that answers the question.
func (r *Runtime) Observe(ctx context.Context, uid pod.UID) (pod.Observed, error) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	at := time.Now() // what happens while we ask may be missing
	selector := map[string]string{labelPodUID: string(uid)}
	sandboxes, err := r.CRI.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: selector}})
	if err != nil {
		return pod.Observed{}, fail(opObserve, err)
	}
	containers, err := r.CRI.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: selector}})
	if err != nil {
		return pod.Observed{}, fail(opObserve, err)
	}
	return r.inspect(ctx, uid, look{at, sandboxes.Items, containers.Containers})
}

// look is what the runtime listed of one pod.
type look struct {
	at         time.Time
	sandboxes  []*cri.PodSandbox
	containers []*cri.Container
}

// inspect completes a look with the status of each object. One that is gone by
// then was removed after it was listed, and is left out.
func (r *Runtime) inspect(ctx context.Context, uid pod.UID, l look) (pod.Observed, error) {
	o := pod.Observed{At: l.at}
	for _, s := range l.sandboxes {
		resp, err := r.CRI.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: s.Id})
		if gone(err) {
			continue
		} else if err != nil {
			return o, fail(opObserve, err)
		}
		r.adopt(uid, resp.GetStatus())
		o.Sandboxes = append(o.Sandboxes, sandboxFrom(resp.GetStatus(), first(r.cfg.Node.IPs)))
	}
	for _, c := range l.containers {
		resp, err := r.CRI.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if gone(err) {
			continue
		} else if err != nil {
			return o, fail(opObserve, err)
		}
		o.Containers = append(o.Containers, r.containerFrom(uid, c.PodSandboxId, resp.GetStatus()))
	}
	slices.SortStableFunc(o.Sandboxes, func(a, b pod.Sandbox) int {
		return cmp.Or(cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt))
	})
	slices.SortStableFunc(o.Containers, func(a, b pod.Container) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt))
	})
	r.localFacts(uid, &o)
	return o, nil
}

// localFacts are those that the runtime does not know.
func (r *Runtime) localFacts(uid pod.UID, o *pod.Observed) {
	if mounted, ok := r.Volumes.Mounted(uid); ok {
		if mounted == nil {
			mounted = map[string]pod.Volume{}
		}
		r.mu.Lock()
		o.Volumes, o.VolumesVersion = mounted, r.versions[uid]
		r.mu.Unlock()
	}
	o.Dirty = r.Cgroup.Exists(uid) || exists(r.podDir(uid))
}

// sandboxFrom translates a sandbox; node is the node's own address.
func sandboxFrom(s *cri.PodSandboxStatus, node string) pod.Sandbox {
	out := pod.Sandbox{
		ID: pod.SandboxID(s.GetId()), Attempt: s.GetMetadata().GetAttempt(), CreatedAt: instant(s.GetCreatedAt()),
		Ready:       s.GetState() == cri.PodSandboxState_SANDBOX_READY,
		HostNetwork: s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE,
	}
	if ip := s.GetNetwork().GetIp(); ip != "" && !out.HostNetwork {
		out.IPs = append(out.IPs, ip)
		for _, more := range s.GetNetwork().GetAdditionalIps() {
			out.IPs = append(out.IPs, more.Ip)
		}
		out.IPs = inFamilyOrder(out.IPs, node)
	}
	return out
}

// inFamilyOrder is one address of each family, that of the node's own address
// first: which of a pod's addresses is the primary one must not depend on the
// order in which a plugin reports them.
func inFamilyOrder(ips []string, node string) []string {
	v6 := func(ip string) bool { return strings.Contains(ip, ":") }
	var own, other []string
	for _, ip := range ips {
		switch {
		case v6(ip) == v6(node) && own == nil:
			own = []string{ip}
		case v6(ip) != v6(node) && other == nil:
			other = []string{ip}
		}
	}
	return append(own, other...)
}

var states = map[cri.ContainerState]pod.ContainerState{
	cri.ContainerState_CONTAINER_CREATED: pod.Created,
	cri.ContainerState_CONTAINER_RUNNING: pod.Running,
	cri.ContainerState_CONTAINER_EXITED:  pod.Exited,
	cri.ContainerState_CONTAINER_UNKNOWN: pod.Unknown,
}

func (r *Runtime) containerFrom(uid pod.UID, sandbox string, s *cri.ContainerStatus) pod.Container {
	c := pod.Container{
		ID: pod.ContainerID(s.GetId()), Name: pod.ContainerName(s.GetMetadata().GetName()), Attempt: s.GetMetadata().GetAttempt(),
		SandboxID: pod.SandboxID(sandbox), SpecHash: s.GetAnnotations()[annotationHash], State: states[s.GetState()],
		CreatedAt: instant(s.GetCreatedAt()), StartedAt: instant(s.GetStartedAt()), FinishedAt: instant(s.GetFinishedAt()),
		ExitCode: s.GetExitCode(), Reason: s.GetReason(), Message: s.GetMessage(),
		Image: s.GetImage().GetUserSpecifiedImage(), ImageRef: s.GetImageRef(), ImageID: s.GetImageId(), LogPath: s.GetLogPath(),
	}
	c.Image = cmp.Or(c.Image, s.GetAnnotations()[annotationImage], s.GetImage().GetImage())
	if n, err := strconv.ParseUint(s.GetAnnotations()[annotationRestartCount], 10, 32); err == nil {
		c.Attempt = uint32(n)
	} else if n, ok := logNumber(filepath.Base(s.GetLogPath())); ok { // its annotations are lost
		c.Attempt = max(c.Attempt, n)
	}
	resourcesFrom(&c, s)
	if c.State == pod.Exited {
		c.Message = r.message(uid, s)
	}
	if u := s.GetUser().GetLinux(); u != nil {
		c.User = &pod.User{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}
	}
	return c
}

// instant is zero for the zero time of CRI, which some runtimes write as the year 1.
func instant(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

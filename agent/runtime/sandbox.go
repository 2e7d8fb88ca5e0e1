package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	callTimeout    = 2 * time.Minute // runtimeRequestTimeout
	sandboxTimeout = 4 * time.Minute
)

// settings gathers what the sandbox's configuration needs of the host.
func (r *Runtime) settings(ctx context.Context, t *task, attempt uint32) (sandboxSettings, []string, error) {
	s := sandboxSettings{attempt: attempt, source: t.desired.Source}
	var err error
	if s.parent, err = r.Cgroup.Ensure(ctx, t.pod); err != nil {
		return s, nil, err
	}
	if s.ids, err = r.idMapping(t); err != nil {
		return s, nil, err
	}
	host, err := r.hostDNS(t.pod)
	if err != nil {
		return s, nil, err
	}
	var warnings []string
	s.dns, warnings = r.cfg.dnsConfig(t.pod, host)
	return s, warnings, nil
}

func (r *Runtime) createSandbox(ctx context.Context, t *task) error {
	if err := r.sandboxes.acquire(ctx); err != nil {
		return fail(opSandbox, err)
	}
	defer r.sandboxes.release()
	if err := r.supported(ctx, t); err != nil {
		return fail(opSandbox, err)
	}
	s, warnings, err := r.settings(ctx, t, t.action.Attempt)
	if err != nil {
		return fail(opSandbox, err)
	}
	config, err := r.cfg.sandboxConfig(t.pod, s)
	if err != nil {
		return err
	}
	r.tellDNS(t, warnings)
	failpoint.Hit("agent/runtime/logdir-mkdir")
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return fail(opSandbox, fmt.Errorf("make the pod's log directory: %w", err))
	}
	ctx, cancel := context.WithTimeout(ctx, sandboxTimeout)
	defer cancel()
	failpoint.Hit("agent/runtime/run-sandbox")
	_, err = r.CRI.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: t.desired.RuntimeHandler})
	failpoint.Hit("agent/runtime/run-sandbox-done")
	if err != nil && !t.pod.Spec.HostNetwork {
		if why := r.networkNotReady(ctx); why != nil {
			return failAs(op{opSandbox.what, pod.NetworkNotReady}, pod.Unavailable, fmt.Errorf("%w: %w", why, err))
		}
	}
	return fail(opSandbox, err)
}

// networkNotReady asks the runtime, when a sandbox has failed, whether any could
// have a network now. nil: it could, or nobody knows.
func (r *Runtime) networkNotReady(ctx context.Context) error {
	resp, err := r.CRI.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return nil
	}
	for _, c := range resp.GetStatus().GetConditions() {
		if c.Type == cri.NetworkReady && !c.Status {
			return fmt.Errorf("container runtime network not ready: NetworkReady=false reason:%s message:%s", c.Reason, c.Message)
		}
	}
	return nil
}

func (r *Runtime) stopSandbox(ctx context.Context, t *task) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	failpoint.Hit("agent/runtime/stop-sandbox")
	_, err := r.CRI.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: string(t.action.SandboxID)})
	failpoint.Hit("agent/runtime/stop-sandbox-done")
	if gone(err) {
		return nil
	}
	return fail(opStopBox, err)
}

func (r *Runtime) removeSandbox(ctx context.Context, t *task) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := r.unlinkLogs(ctx, t); err != nil {
		return fail(opRemoveBox, err)
	}
	failpoint.Hit("agent/runtime/remove-sandbox")
	_, err := r.CRI.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: string(t.action.SandboxID)})
	failpoint.Hit("agent/runtime/remove-sandbox-done")
	if gone(err) {
		return nil
	}
	return fail(opRemoveBox, err)
}

// sandboxOf is the action's sandbox as it was last observed.
func (t *task) sandboxOf() (pod.Sandbox, bool) {
	for _, s := range t.observed.Sandboxes {
		if s.ID == t.action.SandboxID {
			return s, true
		}
	}
	return pod.Sandbox{}, false
}

// podIPs are the addresses of the action's sandbox, asked of the runtime if they
// have not been observed.
func (r *Runtime) podIPs(ctx context.Context, t *task) (ips []string, attempt uint32, err error) {
	if s, ok := t.sandboxOf(); ok && (len(s.IPs) > 0 || s.HostNetwork) {
		return s.IPs, s.Attempt, nil
	}
	resp, err := r.CRI.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: string(t.action.SandboxID)})
	if err != nil {
		return nil, 0, err
	}
	s := sandboxFrom(resp.GetStatus(), first(r.cfg.Node.IPs))
	return s.IPs, s.Attempt, nil
}

func (r *Runtime) mountVolumes(ctx context.Context, t *task) error {
	if _, err := r.Cgroup.Ensure(ctx, t.pod); err != nil {
		return fail(op{opMount.what, "FailedCreatePodContainer"}, err)
	}
	failpoint.Hit("agent/runtime/poddir-mkdir")
	if err := os.MkdirAll(r.podDir(t.uid), 0o750); err != nil {
		return fail(op{opMount.what, pod.FailedReason}, err)
	}
	failpoint.Hit("agent/runtime/mount-volumes")
	mounted, err := r.Volumes.Mount(ctx, t.pod)
	failpoint.Hit("agent/runtime/mount-volumes-done")
	if err != nil {
		return fail(opMount, err)
	}
	if mounted == nil {
		mounted = map[string]pod.Volume{}
	}
	r.mu.Lock()
	r.versions[t.uid] = t.desired.Inputs.Version
	r.mu.Unlock()
	t.result.Volumes, t.result.VolumesVersion = mounted, t.desired.Inputs.Version
	return nil
}

func (r *Runtime) unmountVolumes(ctx context.Context, t *task) error {
	r.mu.Lock()
	delete(r.versions, t.uid)
	r.mu.Unlock()
	failpoint.Hit("agent/runtime/unmount-volumes")
	err := r.Volumes.Unmount(ctx, t.uid)
	failpoint.Hit("agent/runtime/unmount-volumes-done")
	return fail(opUnmount, err)
}

// cleanup takes away what is left of the pod on the host: its cgroup, its
// directory and, when nobody knows the pod any more, its logs.
func (r *Runtime) cleanup(ctx context.Context, t *task) error {
	failpoint.Hit("agent/runtime/cgroup-remove")
	if err := r.Cgroup.Remove(ctx, t.uid); err != nil {
		return fail(opCleanup, err)
	}
	if r.Userns != nil {
		if err := r.Userns.Release(t.uid); err != nil {
			return fail(opCleanup, err)
		}
	}
	r.mu.Lock()
	delete(r.versions, t.uid)
	delete(r.told, t.uid)
	r.mu.Unlock()
	failpoint.Hit("agent/runtime/poddir-remove")
	if err := r.Volumes.Remove(ctx, t.uid); err != nil {
		return fail(opCleanup, err)
	}
	if t.desired.Forget {
		return fail(opCleanup, r.removeLogs(t.pod))
	}
	return nil
}

// removeLogs removes the pod's log directory, below the root of logs and nowhere
// else, whatever links somebody put there.
func (r *Runtime) removeLogs(p *v1.Pod) error {
	name := logDirName(p)
	if !filepath.IsLocal(name) || strings.Contains(name, "/") {
		return fmt.Errorf("the name of the log directory %q is not one: its logs stay", name)
	}
	root, err := os.OpenRoot(r.cfg.LogDir)
	if os.IsNotExist(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("open the directory of logs: %w", err)
	}
	defer root.Close()
	if err := r.sweepLogLinks(filepath.Join(r.cfg.LogDir, name), true); err != nil {
		return err
	}
	failpoint.Hit("agent/runtime/logs-remove")
	if err := root.RemoveAll(name); err != nil {
		return fmt.Errorf("remove the pod's logs: %w", err)
	}
	failpoint.Hit("agent/runtime/logs-remove-done")
	return nil
}

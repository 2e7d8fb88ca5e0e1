package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// startContainer creates and starts an instance. One of the same name and
// attempt in the sandbox is adopted: an earlier call was cut short after making it.
func (r *Runtime) startContainer(ctx context.Context, t *task) error {
	c := t.container()
	if c == nil {
		return failAs(opConfig, pod.Invalid, fmt.Errorf("the pod has no container %q", t.action.Container))
	}
	if err := r.starts.acquire(ctx); err != nil {
		return fail(opCreate, err)
	}
	defer r.starts.release()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	id, state, err := r.instance(ctx, t)
	if err != nil {
		return fail(opCreate, err)
	}
	if id == "" {
		if id, err = r.createContainer(ctx, t, c); err != nil {
			return err
		}
	} else if state != cri.ContainerState_CONTAINER_CREATED {
		return nil
	}
	if err := r.linkLog(t.pod, c, id, filepath.Join(r.cfg.LogDir, logDirName(t.pod), logPath(c, t.action.Attempt))); err != nil {
		return fail(opStart, err)
	}
	failpoint.Hit("agent/runtime/start-container")
	_, err = r.CRI.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	failpoint.Hit("agent/runtime/start-container-done")
	return fail(opStart, err)
}

// instance looks for the one that is to be started.
func (r *Runtime) instance(ctx context.Context, t *task) (string, cri.ContainerState, error) {
	resp, err := r.CRI.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		PodSandboxId: string(t.action.SandboxID), LabelSelector: map[string]string{labelContainerName: string(t.action.Container)},
	}})
	if err != nil {
		return "", 0, err
	}
	for _, c := range resp.Containers {
		if c.GetMetadata().GetAttempt() == t.action.Attempt {
			return c.Id, c.State, nil
		}
	}
	return "", 0, nil
}

func (r *Runtime) createContainer(ctx context.Context, t *task, c *v1.Container) (string, error) {
	config, sandbox, err := r.containerConfig(ctx, t, c)
	if err != nil {
		return "", fail(opConfig, err)
	}
	failpoint.Hit("agent/runtime/container-logdir-mkdir")
	if err := os.MkdirAll(filepath.Join(sandbox.LogDirectory, c.Name), 0o755); err != nil {
		return "", fail(opCreate, fmt.Errorf("make the container's log directory: %w", err))
	}
	failpoint.Hit("agent/runtime/create-container")
	resp, err := r.CRI.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: string(t.action.SandboxID), Config: config, SandboxConfig: sandbox})
	failpoint.Hit("agent/runtime/create-container-done")
	if err != nil {
		return "", fail(opCreate, err)
	}
	return resp.ContainerId, nil
}

// containerConfig is all that CreateContainer is told.
func (r *Runtime) containerConfig(ctx context.Context, t *task, c *v1.Container) (*cri.ContainerConfig, *cri.PodSandboxConfig, error) {
	ips, sandboxAttempt, err := r.podIPs(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	s, _, err := r.settings(ctx, t, sandboxAttempt)
	if err != nil {
		return nil, nil, err
	}
	sandbox, err := r.cfg.sandboxConfig(t.pod, s)
	if err != nil {
		return nil, nil, err
	}
	image, user, err := r.imageFor(ctx, t, c)
	if err != nil {
		return nil, nil, err
	}
	target, err := t.target()
	if err != nil {
		return nil, nil, err
	}
	security, err := r.cfg.containerSecurity(t.pod, c, user, peers{target, s.ids})
	if err != nil {
		return nil, nil, err
	}
	e, err := r.environment(t, c, ips)
	if err != nil {
		return nil, nil, err
	}
	mounts, err := r.mounts(ctx, t, c, mountFacts{env: e.values, ips: ips, ids: s.ids})
	if err != nil {
		return nil, nil, err
	}
	config := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: t.action.Attempt},
		Image:       &cri.ImageSpec{Image: image, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.Command, e.values),
		Args:        expandAll(c.Args, e.values),
		WorkingDir:  c.WorkingDir,
		Envs:        e.cri(),
		Mounts:      mounts,
		Labels:      containerLabels(t.pod, c),
		Annotations: containerAnnotations(t.pod, c, t.action.Attempt),
		LogPath:     logPath(c, t.action.Attempt),
		Stdin:       c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &cri.LinuxContainerConfig{Resources: r.cfg.containerResources(t.pod, c), SecurityContext: security},
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		config.StopSignal = cri.Signal(cri.Signal_value[string(*c.Lifecycle.StopSignal)])
	}
	return config, sandbox, nil
}

// logPath is where an instance's log lies below the pod's log directory.
func logPath(c *v1.Container, attempt uint32) string {
	return filepath.Join(c.Name, strconv.FormatUint(uint64(attempt), 10)+".log")
}

// environment is c's environment, of what is known now.
func (r *Runtime) environment(t *task, c *v1.Container, ips []string) (*env, error) {
	f := facts{pod: t.pod, podIPs: ips, node: r.cfg.Node, objects: r.Objects, volumes: r.volumes(t)}
	if r.Services != nil {
		services, read := r.Services()
		static := t.desired.Source == pod.SourceFile || t.desired.Source == pod.SourceHTTP
		if !read && !static {
			return nil, failAs(opConfig, pod.Unavailable, errors.New("services have not yet been read at least once, cannot construct envvars"))
		}
		f.services = serviceEnv(services, t.pod.Namespace, t.pod.Spec.EnableServiceLinks == nil || *t.pod.Spec.EnableServiceLinks)
	}
	return environment(f, c)
}

// volumes are those that are mounted for the pod.
func (r *Runtime) volumes(t *task) map[string]pod.Volume {
	if mounted, ok := r.Volumes.Mounted(t.uid); ok {
		return mounted
	}
	return t.observed.Volumes
}

// imageFor is the image's reference and user.
func (r *Runtime) imageFor(ctx context.Context, t *task, c *v1.Container) (string, imageUser, error) {
	ref := t.observed.Images[t.action.Container].Ref
	if ref == "" {
		var err error
		if ref, err = withDefaultTag(c.Image); err != nil {
			return "", imageUser{}, err
		}
	}
	have, err := r.imageStatus(ctx, &cri.ImageSpec{Image: ref})
	if err != nil {
		return "", imageUser{}, err
	}
	if have == nil {
		return "", imageUser{}, failAs(opCreate, pod.NotFound, fmt.Errorf("image %q of container %q is not there any more", c.Image, c.Name))
	}
	user := imageUser{name: have.Username}
	if have.Uid != nil {
		user.uid = &have.Uid.Value
	} else if have.Username == "" {
		user.uid = new(int64)
	}
	return ref, user, nil
}

// target is the container whose processes an ephemeral container is to see.
func (t *task) target() (string, error) {
	for i := range t.pod.Spec.EphemeralContainers {
		e := &t.pod.Spec.EphemeralContainers[i]
		if e.Name != string(t.action.Container) || e.TargetContainerName == "" {
			continue
		}
		for _, c := range t.observed.Containers {
			if string(c.Name) == e.TargetContainerName && c.SandboxID == t.action.SandboxID {
				return string(c.ID), nil
			}
		}
		return "", failAs(opConfig, pod.NotFound, fmt.Errorf("unable to find target container %v", e.TargetContainerName))
	}
	return "", nil
}

// mountFacts are what a container's mounts depend on beside its spec.
type mountFacts struct {
	env map[string]string
	ips []string
	ids *pod.IDMapping
}

// mounts are the volumes, the hosts file and the termination message file.
func (r *Runtime) mounts(ctx context.Context, t *task, c *v1.Container, f mountFacts) ([]*cri.Mount, error) {
	m := mounting{pod: t.pod, ctr: c, volumes: r.volumes(t), env: f.env, ids: f.ids, subPath: r.Volumes.SubPath}
	var err error
	for _, vm := range c.VolumeMounts {
		if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
			continue
		}
		can, err := r.features(ctx)
		if err != nil {
			return nil, err
		}
		m.recursive = can.of(t.desired.RuntimeHandler).GetRecursiveReadOnlyMounts()
		break
	}
	if m.images, err = r.volumeImages(ctx, t, c); err != nil {
		return nil, err
	}
	all, err := m.mounts(ctx)
	if err != nil {
		return nil, err
	}
	own, err := r.ownMounts(t, c, f.ips)
	for _, one := range own {
		one.UidMappings, one.GidMappings = idMappings(f.ids), idMappings(f.ids)
	}
	return append(all, own...), err
}

// ownMounts are the files that the agent gives to every container.
func (r *Runtime) ownMounts(t *task, c *v1.Container, ips []string) (all []*cri.Mount, err error) {
	dir := filepath.Join(r.podDir(t.uid), "containers", c.Name)
	failpoint.Hit("agent/runtime/container-mkdir")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the container's directory: %w", err)
	}
	if managesHosts(t.pod, c, ips) {
		path, err := r.writeHosts(t.pod, r.podDir(t.uid), ips)
		if err != nil {
			return nil, err
		}
		all = append(all, &cri.Mount{ContainerPath: hostsPath, HostPath: path, SelinuxRelabel: true})
	}
	if c.TerminationMessagePath != "" {
		path, err := terminationFile(dir, t.action)
		if err != nil {
			return nil, err
		}
		all = append(all, &cri.Mount{ContainerPath: c.TerminationMessagePath, HostPath: path, SelinuxRelabel: true})
	}
	return all, nil
}

func (r *Runtime) removeContainer(ctx context.Context, t *task) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := r.unlinkLog(t); err != nil {
		return fail(opRemove, err)
	}
	failpoint.Hit("agent/runtime/remove-container")
	_, err := r.CRI.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: string(t.action.ContainerID)})
	failpoint.Hit("agent/runtime/remove-container-done")
	if gone(err) {
		return nil
	}
	return fail(opRemove, err)
}

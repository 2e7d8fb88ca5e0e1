package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// phase is a part of a life.
type phase int

const (
	runSandbox phase = iota
	createContainer
	startContainer // until the workload has told that it runs
	stopContainer
	removeContainer
	stopSandbox
	removeSandbox
	whole // sum of the others
	phases
)

func (p phase) String() string {
	return [...]string{"RunPodSandbox", "CreateContainer", "StartContainer until it runs", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "whole life"}[p]
}

// timing is how long each phase of one life took.
type timing [phases]time.Duration

// pod is one pod of a side.
type pod struct {
	s                  *side
	name               string
	mode               runtimeapi.NamespaceMode
	sandbox, container string
	config             *runtimeapi.PodSandboxConfig
}

func pidMode(name string) (runtimeapi.NamespaceMode, error) {
	n, ok := runtimeapi.NamespaceMode_value[name]
	if mode := runtimeapi.NamespaceMode(n); ok && (mode == runtimeapi.NamespaceMode_CONTAINER || mode == runtimeapi.NamespaceMode_POD) {
		return mode, nil
	}
	return 0, fmt.Errorf("PID mode %q: it is CONTAINER or POD", name)
}

// newPod describes a pod as a kubelet does one of QoS class BestEffort.
func newPod(s *side, name string, mode runtimeapi.NamespaceMode) *pod {
	return &pod{s: s, name: name, mode: mode, config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(s.home, "log", name),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "uid-" + name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: s.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: mode},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}}
}

func (p *pod) containerConfig() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
		Image:    &runtimeapi.ImageSpec{Image: imageName},
		Command:  []string{"/stamp", "/stamps/" + p.name},
		LogPath:  "c/0.log",
		Labels:   map[string]string{"io.kubernetes.container.name": "c"},
		Mounts: []*runtimeapi.Mount{
			{ContainerPath: "/stamps", HostPath: p.s.stamps()},
			{ContainerPath: "/etc/hosts", HostPath: p.s.home + "/files/hosts"},
			{ContainerPath: "/dev/termination-log", HostPath: p.s.home + "/files/termination-log"},
		},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: p.mode},
				MaskedPaths:      []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths:    []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// begin walks the way up, until the workload has told that it runs.
func (p *pod) begin(ctx context.Context, t *timing) error {
	if err := os.MkdirAll(filepath.Join(p.config.GetLogDirectory(), "c"), 0o755); err != nil {
		return err
	}
	err := timed(&t[runSandbox], func() error {
		r, err := p.s.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
		p.sandbox = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return err
	}
	err = timed(&t[createContainer], func() error {
		r, err := p.s.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: p.containerConfig(), SandboxConfig: p.config})
		p.container = r.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}
	return timed(&t[startContainer], func() error {
		if _, err := p.s.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
			return err
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Microsecond) {
			if _, err := os.Stat(filepath.Join(p.s.stamps(), p.name)); err == nil {
				return nil
			}
			if time.Now().After(end) {
				return fmt.Errorf("the workload of pod %s did not run within a minute of StartContainer", p.name)
			}
		}
	})
}

// end walks the way down.
func (p *pod) end(ctx context.Context, t *timing) error {
	for _, step := range []struct {
		phase phase
		call  func() error
	}{
		{stopContainer, func() error {
			_, err := p.s.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: 30})
			return err
		}},
		{removeContainer, func() error {
			_, err := p.s.cri.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.container})
			return err
		}},
		{stopSandbox, func() error {
			_, err := p.s.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandbox})
			return err
		}},
		{removeSandbox, func() error {
			_, err := p.s.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
			return err
		}},
	} {
		if err := timed(&t[step.phase], step.call); err != nil {
			return fmt.Errorf("%s: %w", step.phase, err)
		}
	}
	return nil
}

// live is one whole life.
func live(ctx context.Context, s *side, name string, mode runtimeapi.NamespaceMode) (timing, error) {
	var t timing
	p := newPod(s, name, mode)
	err := p.begin(ctx, &t)
	if err == nil {
		err = p.end(ctx, &t)
	}
	if err != nil {
		return t, fmt.Errorf("%s: life %s: %w\n%s", s.name, name, err, s.logTail())
	}
	for _, d := range t[:whole] {
		t[whole] += d
	}
	_ = os.Remove(filepath.Join(s.stamps(), name))
	return t, os.RemoveAll(p.config.GetLogDirectory())
}

func timed(d *time.Duration, f func() error) error {
	t0 := time.Now()
	err := f()
	*d = time.Since(t0)
	return err
}

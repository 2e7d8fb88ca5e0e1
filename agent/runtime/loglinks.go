package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Links in Config.LogLinksDir are what log shippers read: one for each container
// instance, to its log file. A link is made between create and start, so that no
// line is written that nobody looks for, and taken away before the instance is:
// a kill in between leaves an instance without a link, never the reverse.
//
//	CreateContainer ─▶ link ─▶ StartContainer ─▶ ... ─▶ unlink ─▶ RemoveContainer
//
// Rotation renames the log and opens another of the same name: the link stays right.

const maxName = 255 // of a file, in bytes

// LogLink is the name of the link of a container instance, as the kubelet
// writes it: log shippers take pod, namespace, container and ID from it.
func LogLink(podName, namespace, container string, id pod.ContainerID) string {
	name := podName + "_" + namespace + "_" + container + "-" + string(id)
	return name[:min(len(name), maxName-len(".log"))] + ".log"
}

// linkOf is the link of the instance that labels and id name, "" if they name none.
func linkOf(labels map[string]string, id string) string {
	p, ns, c := labels[labelPodName], labels[labelPodNamespace], labels[labelContainerName]
	if p == "" || c == "" || strings.ContainsRune(p+ns+c+id, '/') {
		return ""
	}
	return LogLink(p, ns, c, pod.ContainerID(id))
}

// linkLog makes the link of an instance, or puts one right that leads elsewhere.
func (r *Runtime) linkLog(p *v1.Pod, c *v1.Container, id, log string) error {
	if r.cfg.LogLinksDir == "" {
		return nil
	}
	link := filepath.Join(r.cfg.LogLinksDir, LogLink(p.Name, p.Namespace, c.Name, pod.ContainerID(id)))
	if have, err := os.Readlink(link); err == nil && have == log {
		return nil
	}
	failpoint.Hit("agent/runtime/log-link-mkdir")
	if err := os.MkdirAll(r.cfg.LogLinksDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of links to logs: %w", err)
	}
	failpoint.Hit("agent/runtime/log-link")
	err := os.Symlink(log, link)
	if errors.Is(err, os.ErrExist) {
		if err = os.Remove(link); err == nil || errors.Is(err, os.ErrNotExist) {
			err = os.Symlink(log, link)
		}
	}
	if err != nil {
		return fmt.Errorf("link the container's log: %w", err)
	}
	failpoint.Hit("agent/runtime/log-link-done")
	return nil
}

// unlinkLog takes away the link of the action's instance.
func (r *Runtime) unlinkLog(t *task) error {
	if r.cfg.LogLinksDir == "" {
		return nil
	}
	labels := podLabels(t.pod)
	labels[labelContainerName] = string(t.action.Container)
	return RemoveLogLink(r.cfg.LogLinksDir, labels, string(t.action.ContainerID))
}

// unlinkLogs takes away the links of all instances in the action's sandbox.
func (r *Runtime) unlinkLogs(ctx context.Context, t *task) error {
	if r.cfg.LogLinksDir == "" {
		return nil
	}
	resp, err := r.CRI.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: string(t.action.SandboxID)}})
	if err != nil {
		return err
	}
	for _, c := range resp.Containers {
		if err := RemoveLogLink(r.cfg.LogLinksDir, c.Labels, c.Id); err != nil {
			return err
		}
	}
	return nil
}

// RemoveLogLink removes the link of the container instance with these labels
// and this ID from dir. One that is not there is fine.
func RemoveLogLink(dir string, labels map[string]string, id string) error {
	name := linkOf(labels, id)
	if name == "" {
		return nil
	}
	failpoint.Hit("agent/runtime/log-unlink")
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the link to the container's log: %w", err)
	}
	failpoint.Hit("agent/runtime/log-unlink-done")
	return nil
}

// sweepLogLinks removes links to logs below prefix, a directory: all of them, or
// only those whose log is gone. Other agents' links in the same directory stay.
func (r *Runtime) sweepLogLinks(prefix string, all bool) error {
	if r.cfg.LogLinksDir == "" {
		return nil
	}
	entries, err := os.ReadDir(r.cfg.LogLinksDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look through the links to logs: %w", err)
	}
	for _, e := range entries {
		link := filepath.Join(r.cfg.LogLinksDir, e.Name())
		if e.Type() != os.ModeSymlink || !strings.HasSuffix(e.Name(), ".log") {
			continue
		}
		log, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(log, prefix+string(filepath.Separator)) {
			continue
		}
		if _, err := os.Lstat(log); !all && (err == nil || !errors.Is(err, os.ErrNotExist)) {
			continue
		}
		failpoint.Hit("agent/runtime/log-link-sweep")
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove a link to a log that is gone: %w", err)
		}
	}
	return nil
}

// SweepLogLinks removes the links to logs of this node's pods that are gone:
// what a removal of logs behind the agent's back leaves. It is for the start.
func (r *Runtime) SweepLogLinks() error { return r.sweepLogLinks(filepath.Clean(r.cfg.LogDir), false) }

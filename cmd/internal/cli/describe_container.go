package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

func (w *description) containers(title string, specs []v1.Container, statuses []v1.ContainerStatus) {
	if len(specs) == 0 {
		return
	}
	w.line(0, title, "")
	for i := range specs {
		c := &specs[i]
		w.line(1, c.Name, "")
		at := slices.IndexFunc(statuses, func(s v1.ContainerStatus) bool { return s.Name == c.Name })
		if at >= 0 {
			w.status(c, &statuses[at])
		} else {
			w.line(2, "Image", c.Image)
		}
		w.spec(c)
	}
}

func (w *description) status(c *v1.Container, s *v1.ContainerStatus) {
	if s.ContainerID != "" {
		w.line(2, "Container ID", s.ContainerID)
	}
	w.line(2, "Image", c.Image)
	if s.ImageID != "" {
		w.line(2, "Image ID", s.ImageID)
	}
	w.state("State", s.State)
	if s.LastTerminationState.Terminated != nil {
		w.state("Last State", s.LastTerminationState)
	}
	w.line(2, "Ready", fmt.Sprint(s.Ready))
	w.line(2, "Restart Count", fmt.Sprint(s.RestartCount))
}

func (w *description) state(title string, s v1.ContainerState) {
	switch {
	case s.Running != nil:
		w.line(2, title, "Running")
		w.line(3, "Started", relative(s.Running.StartedAt.Time, w.now))
	case s.Terminated != nil:
		t := s.Terminated
		w.line(2, title, "Terminated")
		if t.Reason != "" {
			w.line(3, "Reason", t.Reason)
		}
		if t.Message != "" {
			w.line(3, "Message", strings.TrimSpace(t.Message))
		}
		w.line(3, "Exit Code", fmt.Sprint(t.ExitCode))
		if !t.StartedAt.IsZero() {
			w.line(3, "Started", relative(t.StartedAt.Time, w.now))
		}
		w.line(3, "Finished", relative(t.FinishedAt.Time, w.now))
	case s.Waiting != nil:
		w.line(2, title, "Waiting")
		if s.Waiting.Reason != "" {
			w.line(3, "Reason", s.Waiting.Reason)
		}
		if s.Waiting.Message != "" {
			w.line(3, "Message", strings.TrimSpace(s.Waiting.Message))
		}
	default:
		w.line(2, title, "Waiting")
	}
}

func (w *description) spec(c *v1.Container) {
	var ports []string
	for _, p := range c.Ports {
		text := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		if p.HostPort != 0 {
			text += fmt.Sprintf(" (host port %d)", p.HostPort)
		}
		ports = append(ports, text)
	}
	if len(ports) > 0 {
		w.line(2, "Ports", strings.Join(ports, ", "))
	}
	if len(c.Command) > 0 {
		w.line(2, "Command", fmt.Sprintf("%q", c.Command))
	}
	if len(c.Args) > 0 {
		w.line(2, "Args", fmt.Sprintf("%q", c.Args))
	}
	w.amounts("Limits", c.Resources.Limits)
	w.amounts("Requests", c.Resources.Requests)
	w.probe("Startup", c.StartupProbe)
	w.probe("Liveness", c.LivenessProbe)
	w.probe("Readiness", c.ReadinessProbe)
	if len(c.Env) > 0 {
		w.line(2, "Environment", "")
		for i := range c.Env {
			w.line(3, c.Env[i].Name, envText(&c.Env[i]))
		}
	}
	if len(c.VolumeMounts) > 0 {
		w.line(2, "Mounts", "")
		for _, m := range c.VolumeMounts {
			mode := "rw"
			if m.ReadOnly {
				mode = "ro"
			}
			fmt.Fprintf(w, "      %s from %s (%s)\n", m.MountPath, m.Name, mode)
		}
	}
}

func envText(e *v1.EnvVar) string {
	switch from := e.ValueFrom; {
	case from == nil:
		if e.Value == "" {
			return `""`
		}
		return e.Value
	case from.SecretKeyRef != nil:
		return fmt.Sprintf("<key %s of Secret %s>", from.SecretKeyRef.Key, from.SecretKeyRef.Name)
	case from.ConfigMapKeyRef != nil:
		return fmt.Sprintf("<key %s of ConfigMap %s>", from.ConfigMapKeyRef.Key, from.ConfigMapKeyRef.Name)
	case from.FieldRef != nil:
		return "<" + from.FieldRef.FieldPath + ">"
	case from.ResourceFieldRef != nil:
		return "<" + from.ResourceFieldRef.Resource + ">"
	}
	return "<from elsewhere>"
}

func (w *description) amounts(name string, list v1.ResourceList) {
	var all []string
	for k, v := range list {
		all = append(all, string(k)+" "+v.String())
	}
	slices.Sort(all)
	if len(all) > 0 {
		w.line(2, name, strings.Join(all, ", "))
	}
}

func (w *description) probe(name string, p *v1.Probe) {
	if p == nil {
		return
	}
	what := "?"
	switch {
	case p.Exec != nil:
		what = fmt.Sprintf("exec %q", p.Exec.Command)
	case p.HTTPGet != nil:
		what = fmt.Sprintf("http-get %s://%s:%s%s", strings.ToLower(string(p.HTTPGet.Scheme)), p.HTTPGet.Host, p.HTTPGet.Port.String(), p.HTTPGet.Path)
	case p.TCPSocket != nil:
		what = fmt.Sprintf("tcp-socket %s:%s", p.TCPSocket.Host, p.TCPSocket.Port.String())
	case p.GRPC != nil:
		what = fmt.Sprintf("grpc :%d", p.GRPC.Port)
	}
	seconds := func(n int32) time.Duration { return time.Duration(n) * time.Second }
	w.line(2, name, fmt.Sprintf("%s delay=%s timeout=%s period=%s #success=%d #failure=%d", what,
		seconds(p.InitialDelaySeconds), seconds(p.TimeoutSeconds), seconds(p.PeriodSeconds), p.SuccessThreshold, p.FailureThreshold))
}

func (w *description) volumes(all []v1.Volume) {
	if len(all) == 0 {
		return
	}
	w.line(0, "Volumes", "")
	for i := range all {
		w.line(1, all[i].Name, volumeText(&all[i]))
	}
}

func volumeText(v *v1.Volume) string {
	switch {
	case v.HostPath != nil:
		return "hostPath " + v.HostPath.Path
	case v.EmptyDir != nil:
		text := "emptyDir"
		if v.EmptyDir.Medium != "" {
			text += " in " + string(v.EmptyDir.Medium)
		}
		if v.EmptyDir.SizeLimit != nil {
			text += ", at most " + v.EmptyDir.SizeLimit.String()
		}
		return text
	case v.ConfigMap != nil:
		return "ConfigMap " + v.ConfigMap.Name
	case v.Secret != nil:
		return "Secret " + v.Secret.SecretName
	case v.DownwardAPI != nil:
		return "downwardAPI"
	case v.Projected != nil:
		return fmt.Sprintf("projected, of %d sources", len(v.Projected.Sources))
	}
	return "of another kind"
}

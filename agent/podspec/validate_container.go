package podspec

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (c *checker) containers(at *field.Path) {
	if len(c.spec.Containers) == 0 {
		c.required(at, "")
		return
	}
	names, ports := sets.New[string](), sets.New[string]()
	for i := range c.spec.Containers {
		k, at := &c.spec.Containers[i], at.Index(i)
		c.container(k, at)
		c.uniqueName(names, k.Name, at)
		c.image(k.Image, at)
		c.health(k, at)
		c.restart(k, at)
		c.hostPorts(ports, k, at)
	}
}

func (c *checker) initContainers(at *field.Path) {
	names := sets.New[string]()
	for i := range c.spec.Containers {
		names.Insert(c.spec.Containers[i].Name)
	}
	for i := range c.spec.InitContainers {
		k, list, at := &c.spec.InitContainers[i], at, at.Index(i)
		sidecar := k.RestartPolicy != nil && *k.RestartPolicy == v1.ContainerRestartPolicyAlways
		c.container(k, at)
		c.image(k.Image, at)
		switch {
		case names.Has(k.Name):
			c.add(field.Duplicate(at.Child("name"), k.Name))
		case k.Name != "":
			names.Insert(k.Name)
		}
		// Init containers run one after the other: their ports collide only within
		// one of them, and the API names the first of the list for it.
		c.hostPorts(sets.New[string](), k, list.Index(0))
		if k.RestartPolicy != nil {
			c.restart(k, at)
		} else if len(k.RestartPolicyRules) > 0 {
			c.required(at.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
		}
		if sidecar {
			c.health(k, at)
			continue
		}
		c.noHealth(k, at)
		for j, p := range k.ResizePolicy {
			if p.RestartPolicy == v1.RestartContainer {
				c.invalid(at.Child("resizePolicy").Index(j).Child("restartPolicy"), p.RestartPolicy,
					"must not be set to 'RestartContainer' for non-sidecar initContainers")
			}
		}
	}
}

// noHealth: an ordinary init container ends by itself, so nothing watches it.
func (c *checker) noHealth(k *v1.Container, at *field.Path) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"lifecycle", k.Lifecycle != nil}, {"livenessProbe", k.LivenessProbe != nil},
		{"readinessProbe", k.ReadinessProbe != nil}, {"startupProbe", k.StartupProbe != nil},
	} {
		if f.set {
			c.forbidden(at.Child(f.name), "may not be set for init containers without restartPolicy=Always")
		}
	}
}

// ephemeralFields are what an ephemeral container may set: it is there to look at
// the pod, and no part of what the pod does.
var ephemeralFields = sets.New("Name", "Image", "Command", "Args", "WorkingDir", "EnvFrom", "Env", "VolumeMounts", "VolumeDevices",
	"TerminationMessagePath", "TerminationMessagePolicy", "ImagePullPolicy", "SecurityContext", "Stdin", "StdinOnce", "TTY")

func (c *checker) ephemeralContainers(at *field.Path) {
	others := sets.New[string]()
	for i := range c.spec.Containers {
		others.Insert(c.spec.Containers[i].Name)
	}
	for i := range c.spec.InitContainers {
		others.Insert(c.spec.InitContainers[i].Name)
	}
	names := others.Clone()
	for i := range c.spec.EphemeralContainers {
		e, at := &c.spec.EphemeralContainers[i], at.Index(i)
		c.container((*v1.Container)(&e.EphemeralContainerCommon), at)
		c.image(e.Image, at)
		c.uniqueName(names, e.Name, at)
		if t := e.TargetContainerName; t != "" && !others.Has(t) {
			c.add(field.NotFound(at.Child("targetContainerName"), t))
		}
		c.onlyFields(e.EphemeralContainerCommon, ephemeralFields, at, "cannot be set for an Ephemeral Container")
		for j, m := range e.VolumeMounts {
			at := at.Child("volumeMounts").Index(j)
			if m.SubPath != "" {
				c.forbidden(at.Child("subPath"), "cannot be set for an Ephemeral Container")
			}
			if m.SubPathExpr != "" {
				c.forbidden(at.Child("subPathExpr"), "cannot be set for an Ephemeral Container")
			}
		}
	}
}

// onlyFields forbids what of a struct is set and not allowed, by the names of its
// Go fields with the first letter lowered, as the API reports them.
func (f *findings) onlyFields(of any, allowed sets.Set[string], at *field.Path, why string) {
	for _, s := range setFields(of) {
		if !allowed.Has(s.Name) {
			f.forbidden(at.Child(strings.ToLower(s.Name[:1])+s.Name[1:]), why)
		}
	}
}

// noneOf forbids what of a struct is set and among the names, which are JSON's.
func (f *findings) noneOf(of any, names sets.Set[string], at *field.Path, why string) {
	for _, s := range setFields(of) {
		if name, _, _ := strings.Cut(s.Tag.Get("json"), ","); names.Has(name) {
			f.forbidden(at.Child(name), why)
		}
	}
}

func setFields(of any) (set []reflect.StructField) {
	v := reflect.ValueOf(of)
	for i := range v.NumField() {
		if !v.Field(i).IsZero() {
			set = append(set, v.Type().Field(i))
		}
	}
	return set
}

func (c *checker) uniqueName(seen sets.Set[string], name string, at *field.Path) {
	if seen.Has(name) {
		c.add(field.Duplicate(at.Child("name"), name))
	}
	seen.Insert(name)
}

func (c *checker) image(image string, at *field.Path) {
	if image != strings.TrimSpace(image) {
		c.invalid(at.Child("image"), image, "must not have leading or trailing whitespace")
	}
}

// container are the rules for every kind of container.
func (c *checker) container(k *v1.Container, at *field.Path) {
	if c.need(at.Child("name"), k.Name) {
		c.label(at.Child("name"), k.Name)
	}
	c.need(at.Child("image"), k.Image)
	chosen(&c.findings, at.Child("terminationMessagePolicy"), k.TerminationMessagePolicy,
		v1.TerminationMessageReadFile, v1.TerminationMessageFallbackToLogsOnError)
	c.ports(k.Ports, at.Child("ports"))
	c.env(k.Env, at.Child("env"))
	c.envFrom(k.EnvFrom, at.Child("envFrom"))
	c.mounts(k, at.Child("volumeMounts"))
	c.devices(k, at.Child("volumeDevices"))
	c.pullPolicy(at.Child("imagePullPolicy"), k.ImagePullPolicy)
	c.requirements(&k.Resources, at.Child("resources"), c.containerResource)
	c.resizePolicy(k.ResizePolicy, at.Child("resizePolicy"))
	c.containerSecurity(k.SecurityContext, at.Child("securityContext"))
}

func (c *checker) pullPolicy(at *field.Path, p v1.PullPolicy) {
	chosen(&c.findings, at, p, v1.PullAlways, v1.PullIfNotPresent, v1.PullNever)
}

func (c *checker) ports(ports []v1.ContainerPort, at *field.Path) {
	names := sets.New[string]()
	for i, p := range ports {
		at := at.Index(i)
		if p.Name != "" {
			if bad := validation.IsValidPortName(p.Name); len(bad) > 0 {
				c.invalid(at.Child("name"), p.Name, bad...)
			} else {
				c.uniqueName(names, p.Name, at)
			}
		}
		if p.ContainerPort == 0 {
			c.required(at.Child("containerPort"), "")
		} else {
			c.invalid(at.Child("containerPort"), p.ContainerPort, validation.IsValidPortNum(int(p.ContainerPort))...)
		}
		if p.HostPort != 0 {
			c.invalid(at.Child("hostPort"), p.HostPort, validation.IsValidPortNum(int(p.HostPort))...)
		}
		chosen(&c.findings, at.Child("protocol"), p.Protocol, v1.ProtocolSCTP, v1.ProtocolTCP, v1.ProtocolUDP)
	}
}

// hostPorts: no port of the host is taken twice.
func (c *checker) hostPorts(taken sets.Set[string], k *v1.Container, at *field.Path) {
	for i, p := range k.Ports {
		if p.HostPort == 0 {
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
		if taken.Has(key) {
			c.add(field.Duplicate(at.Child("ports").Index(i).Child("hostPort"), key))
		}
		taken.Insert(key)
	}
}

// Rules of restarting name at most this many cases, and exit codes.
const (
	maxRestartRules = 20
	maxExitCodes    = 255
)

// restart is the container's own restart policy, with its rules.
func (c *checker) restart(k *v1.Container, at *field.Path) {
	rules := at.Child("restartPolicyRules")
	if p := k.RestartPolicy; p != nil {
		oneOf(&c.findings, at.Child("restartPolicy"), *p, v1.ContainerRestartPolicyAlways, v1.ContainerRestartPolicyNever, v1.ContainerRestartPolicyOnFailure)
	} else if len(k.RestartPolicyRules) > 0 {
		c.required(at.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
	}
	if n := len(k.RestartPolicyRules); n > maxRestartRules {
		c.add(field.TooMany(rules, n, maxRestartRules))
	}
	for i, r := range k.RestartPolicyRules {
		at := rules.Index(i)
		oneOf(&c.findings, at.Child("action"), r.Action, v1.ContainerRestartRuleActionRestart, v1.ContainerRestartRuleActionRestartAllContainers)
		at = at.Child("exitCodes")
		if r.ExitCodes == nil {
			c.required(at, "must be specified")
			continue
		}
		oneOf(&c.findings, at.Child("operator"), r.ExitCodes.Operator, v1.ContainerRestartRuleOnExitCodesOpIn, v1.ContainerRestartRuleOnExitCodesOpNotIn)
		if n := len(r.ExitCodes.Values); n > maxExitCodes {
			c.add(field.TooMany(at.Child("values"), n, maxExitCodes))
		}
	}
}

func (c *checker) resizePolicy(policies []v1.ContainerResizePolicy, at *field.Path) {
	var seen []v1.ResourceName
	for i, p := range policies {
		if slices.Contains(seen, p.ResourceName) {
			c.add(field.Duplicate(at.Index(i), p.ResourceName))
		}
		seen = append(seen, p.ResourceName)
		chosen(&c.findings, at, p.ResourceName, v1.ResourceCPU, v1.ResourceMemory)
		chosen(&c.findings, at, p.RestartPolicy, v1.NotRequired, v1.RestartContainer)
		if c.spec.RestartPolicy == v1.RestartPolicyNever && p.RestartPolicy != v1.NotRequired {
			c.invalid(at, p.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
		}
	}
}

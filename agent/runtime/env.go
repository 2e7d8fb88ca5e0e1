package runtime

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// facts are what references in a container's spec may ask for.
type facts struct {
	pod      *v1.Pod
	podIPs   []string
	node     Node
	objects  Objects
	services *env // nil: none
	volumes  map[string]pod.Volume
}

// env is a container's environment: each name once, in the order of first mention.
type env struct {
	names  []string
	values map[string]string
}

func (e *env) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *env) cri() []*cri.KeyValue {
	out := make([]*cri.KeyValue, 0, len(e.names))
	for _, n := range e.names {
		out = append(out, &cri.KeyValue{Key: n, Value: []byte(e.values[n])})
	}
	return out
}

// environment builds c's environment: services, envFrom in order, then env in
// order; later ones win. A reference in a value sees what was set before it, and
// the services last.
func environment(f facts, c *v1.Container) (*env, error) {
	e := &env{values: map[string]string{}}
	if f.services != nil {
		for _, name := range f.services.names {
			e.set(name, f.services.values[name])
		}
	}
	for _, from := range c.EnvFrom {
		if err := f.envFrom(e, from); err != nil {
			return nil, err
		}
	}
	for _, v := range c.Env {
		if v.ValueFrom == nil {
			e.set(v.Name, expand(v.Value, e.values))
			continue
		}
		value, ok, err := f.valueFrom(c, v)
		if err != nil {
			return nil, err
		}
		if ok {
			e.set(v.Name, value)
		}
	}
	return e, nil
}

func (f facts) envFrom(e *env, from v1.EnvFromSource) error {
	values := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		ref := from.ConfigMapRef
		cm, ok := f.objects.ConfigMap(f.pod.Namespace, ref.Name)
		if !ok {
			return missing(ref.Optional, "configmap %q not found", ref.Name)
		}
		values = cm.Data
	case from.SecretRef != nil:
		ref := from.SecretRef
		s, ok := f.objects.Secret(f.pod.Namespace, ref.Name)
		if !ok {
			return missing(ref.Optional, "secret %q not found", ref.Name)
		}
		for k, v := range s.Data {
			values[k] = string(v)
		}
	}
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		e.set(from.Prefix+k, values[k])
	}
	return nil
}

// missing is nil for an optional reference, else what is not there: NotFound,
// so that its appearance ends the waiting.
func missing(optional *bool, format string, args ...any) error {
	if optional != nil && *optional {
		return nil
	}
	return failAs(opConfig, pod.NotFound, fmt.Errorf(format, args...))
}

// valueFrom returns what v refers to; ok is false if it is optional and not there.
func (f facts) valueFrom(c *v1.Container, v v1.EnvVar) (value string, ok bool, err error) {
	switch from := v.ValueFrom; {
	case from.FieldRef != nil:
		value, err := f.field(from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		value, err := f.resourceField(c, from.ResourceFieldRef)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, ok := f.objects.ConfigMap(f.pod.Namespace, ref.Name)
		if !ok {
			return "", false, missing(ref.Optional, "configmap %q not found", ref.Name)
		}
		value, ok := cm.Data[ref.Key]
		if !ok {
			return "", false, missing(ref.Optional, "couldn't find key %v in ConfigMap %v/%v", ref.Key, f.pod.Namespace, ref.Name)
		}
		return value, true, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, ok := f.objects.Secret(f.pod.Namespace, ref.Name)
		if !ok {
			return "", false, missing(ref.Optional, "secret %q not found", ref.Name)
		}
		value, ok := s.Data[ref.Key]
		if !ok {
			return "", false, missing(ref.Optional, "couldn't find key %v in Secret %v/%v", ref.Key, f.pod.Namespace, ref.Name)
		}
		return string(value), true, nil
	case from.FileKeyRef != nil:
		return f.fileKey(from.FileKeyRef)
	}
	return "", false, failAs(opConfig, pod.Invalid, fmt.Errorf("environment variable %s: this kind of valueFrom is not known to this agent", v.Name))
}

// expand replaces $(NAME) by its value. $$ stands for $, so $$(NAME) stays a
// reference's text; a name that is not set is left as it is written.
func expand(s string, values map[string]string) string {
	return expandBy(s, func(name string) string {
		if v, ok := values[name]; ok {
			return v
		}
		return "$(" + name + ")"
	})
}

// expandBy is expand with what stands for each reference.
func expandBy(s string, value func(name string) string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				b.WriteString("$(")
				i++
				continue
			}
			b.WriteString(value(s[i+2 : i+2+end]))
			i += end + 2
		default:
			b.WriteByte('$')
			b.WriteByte(s[i+1])
			i++
		}
	}
	return b.String()
}

func expandAll(list []string, values map[string]string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, expand(s, values))
	}
	return out
}

// expandSubPath expands a subPathExpr, in which every variable must have a value.
func expandSubPath(s string, values map[string]string) (string, error) {
	bad, missing := "", false
	out := expandBy(s, func(name string) string {
		if values[name] == "" {
			bad, missing = name, true
		}
		return values[name]
	})
	if missing {
		return "", failAs(opConfig, pod.Invalid, fmt.Errorf("failed to expand subPathExpr %q: missing value for %q", s, bad))
	}
	return out, nil
}

package source

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// references lists the ConfigMaps and Secrets that p refers to, each once, sorted.
func references(p *v1.Pod) []Ref {
	var refs []Ref
	configMap := func(name string) { refs = append(refs, Ref{"ConfigMap", p.Namespace, name}) }
	secret := func(name string) { refs = append(refs, Ref{"Secret", p.Namespace, name}) }
	for _, r := range p.Spec.ImagePullSecrets {
		secret(r.Name)
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.ConfigMap != nil {
			configMap(v.ConfigMap.Name)
		}
		if v.Secret != nil {
			secret(v.Secret.SecretName)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				configMap(s.ConfigMap.Name)
			}
			if s.Secret != nil {
				secret(s.Secret.Name)
			}
		}
	}
	for _, cs := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range cs {
			environment(&cs[i], configMap, secret)
		}
	}
	slices.SortFunc(refs, compareRefs)
	return slices.Compact(refs)
}

func environment(c *v1.Container, configMap, secret func(string)) {
	for _, e := range c.EnvFrom {
		if e.ConfigMapRef != nil {
			configMap(e.ConfigMapRef.Name)
		}
		if e.SecretRef != nil {
			secret(e.SecretRef.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			configMap(r.Name)
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			secret(r.Name)
		}
	}
}

// versions tells one set of a pod's inputs from the next.
type versions struct {
	objects map[Ref]*entry
	hashes  map[*entry]string
}

// of returns the version of the objects p refers to: "" if it refers to none.
func (v versions) of(p *v1.Pod) string {
	refs := references(p)
	if len(refs) == 0 {
		return ""
	}
	h := sha256.New()
	for _, r := range refs {
		fmt.Fprintf(h, "%s=%s\n", r, v.hash(v.objects[r]))
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func (v versions) hash(e *entry) string {
	if e == nil {
		return "absent"
	}
	if v.hashes[e] == "" {
		sum := sha256.Sum256(e.bytes())
		v.hashes[e] = string(sum[:])
	}
	return v.hashes[e]
}

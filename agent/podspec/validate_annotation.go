package podspec

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// annotations checks the annotations that mean something to Kubernetes.
func (c *checker) annotations(at *field.Path) {
	all := c.meta.Annotations
	if mirrored, ok := all[v1.MirrorPodAnnotationKey]; ok && c.spec.NodeName == "" {
		c.invalid(at.Key(v1.MirrorPodAnnotationKey), mirrored, "must set spec.nodeName if mirror pod annotation is set")
	}
	if text := all[v1.TolerationsAnnotationKey]; text != "" {
		var tolerations []v1.Toleration
		if err := json.Unmarshal([]byte(text), &tolerations); err != nil {
			c.invalid(at, v1.TolerationsAnnotationKey, err.Error())
		} else {
			c.tolerations(tolerations, at.Child(v1.TolerationsAnnotationKey))
		}
	}
	if cost, ok := all[v1.PodDeletionCost]; ok && !plainInt32(cost) {
		c.invalid(at.Key(v1.PodDeletionCost), cost, "must be a 32bit integer")
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if key == v1.SeccompPodAnnotationKey || strings.HasPrefix(key, v1.SeccompContainerAnnotationKeyPrefix) {
			c.seccompText(all[key], at.Child(key))
		}
		if name, ok := strings.CutPrefix(key, v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix); ok {
			c.appArmorText(all[key], name, at.Key(key))
		}
	}
}

// plainInt32: a number without a plus sign or leading zeros.
func plainInt32(s string) bool {
	n, err := strconv.ParseInt(s, 10, 32)
	return err == nil && (strconv.FormatInt(n, 10) == s || strings.HasPrefix(s, "-"))
}

func (c *checker) seccompText(profile string, at *field.Path) {
	switch profile {
	case v1.SeccompProfileRuntimeDefault, v1.DeprecatedSeccompProfileDockerDefault, v1.SeccompProfileNameUnconfined:
		return
	}
	if local, ok := strings.CutPrefix(profile, v1.SeccompLocalhostProfileNamePrefix); ok {
		c.below(at, local)
	} else {
		c.invalid(at, profile, "must be runtime/default, unconfined or localhost/<path>")
	}
}

func (c *checker) appArmorText(profile, container string, at *field.Path) {
	found := false
	c.each(field.NewPath("spec"), func(k *v1.Container, _ *field.Path) { found = found || k.Name == container })
	if !found {
		c.invalid(at, container, "container not found")
	}
	switch profile {
	case "", v1.DeprecatedAppArmorBetaProfileRuntimeDefault, v1.DeprecatedAppArmorBetaProfileNameUnconfined:
	default:
		if !strings.HasPrefix(profile, v1.DeprecatedAppArmorBetaProfileNamePrefix) {
			c.invalid(at, profile, "must be runtime/default, unconfined or localhost/<profile>")
		}
	}
}

// agrees compares what an annotation says of a profile with what the field says.
func (c *checker) agrees(text, kind string, local *string, at *field.Path) {
	const why = "the annotation and the field must say the same"
	switch kind {
	case "Unconfined":
		if text != v1.SeccompProfileNameUnconfined {
			c.forbidden(at.Child("type"), why)
		}
	case "RuntimeDefault":
		if text != v1.SeccompProfileRuntimeDefault {
			c.forbidden(at.Child("type"), why)
		}
	case "Localhost":
		profile, ok := strings.CutPrefix(text, v1.SeccompLocalhostProfileNamePrefix)
		if !ok {
			c.forbidden(at.Child("type"), why)
		} else if local == nil || *local != profile {
			c.forbidden(at.Child("localhostProfile"), why)
		}
	}
}

func (c *checker) seccompAgrees(at *field.Path) {
	compare := func(key string, p *v1.SeccompProfile, at *field.Path) {
		text, ok := c.meta.Annotations[key]
		if !ok || p == nil {
			return
		}
		if text == v1.DeprecatedSeccompProfileDockerDefault {
			text = v1.SeccompProfileRuntimeDefault
		}
		c.agrees(text, string(p.Type), p.LocalhostProfile, at.Child("securityContext", "seccompProfile"))
	}
	compare(v1.SeccompPodAnnotationKey, c.pod.SeccompProfile, at)
	c.each(at, func(k *v1.Container, at *field.Path) {
		if k.SecurityContext != nil {
			compare(v1.SeccompContainerAnnotationKeyPrefix+k.Name, k.SecurityContext.SeccompProfile, at)
		}
	})
}

// appArmorAgrees: unlike with seccomp, a container that has no profile of its own
// is compared by the pod's.
func (c *checker) appArmorAgrees(at *field.Path) {
	if c.spec.OS != nil && c.spec.OS.Name == v1.Windows {
		return
	}
	c.each(at, func(k *v1.Container, at *field.Path) {
		p := c.pod.AppArmorProfile
		if k.SecurityContext != nil && k.SecurityContext.AppArmorProfile != nil {
			p = k.SecurityContext.AppArmorProfile
		}
		if text, ok := c.meta.Annotations[v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+k.Name]; ok && p != nil {
			c.agrees(text, string(p.Type), p.LocalhostProfile, at.Child("securityContext", "appArmorProfile"))
		}
	})
}

package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidateEphemeralContainersUpdate checks a change that adds ephemeral containers
// to a pod, as the subresource of the same name does: those that are there stay as
// they are, and so do annotations that are read when a pod is made. Both pods are
// defaulted, old passed Validate, and new differs from it in its metadata and
// ephemeral containers alone. Neither is changed. A resource version is not asked for.
func ValidateEphemeralContainersUpdate(new, old *v1.Pod) field.ErrorList {
	if isMirror(old) {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	c := newChecker(new)
	c.metaUpdate(new, old)
	c.metaAndSpec()
	c.annotationUpdate(new.Annotations, old.Annotations)
	at := field.NewPath("spec", "ephemeralContainers")
	byName := map[string]*v1.EphemeralContainer{}
	for i := range new.Spec.EphemeralContainers {
		byName[new.Spec.EphemeralContainers[i].Name] = &new.Spec.EphemeralContainers[i]
	}
	for i := range old.Spec.EphemeralContainers {
		was := &old.Spec.EphemeralContainers[i]
		switch is := byName[was.Name]; {
		case is == nil:
			c.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be removed", was.Name))
		case !apiequality.Semantic.DeepEqual(was, is):
			c.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be changed", was.Name))
		}
	}
	return c.errs
}

// ValidateResize checks a change of what a running pod and its containers may use,
// as the resize subresource does: cpu and memory alone may change, none of them may
// be taken away, and the pod's QoS class stays. Both pods are defaulted, and old
// passed Validate. Neither is changed. A resource version is not asked for.
func ValidateResize(new, old *v1.Pod) field.ErrorList {
	if isMirror(old) {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods cannot be resized")}
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == v1.Windows {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "windows pods cannot be resized")}
	}
	c := newChecker(new)
	c.metaUpdate(new, old)
	c.metaAndSpec()
	at := field.NewPath("spec")
	if was, is := recordedQOS(old), qosClass(&new.Spec); was != is {
		c.invalid(at, is, fmt.Sprintf("Pod QOS Class may not change as a result of resizing: it is %s", was))
	}
	if !resizable(old) {
		c.forbidden(at, "Pod running on node without support for resize")
	}
	if len(old.Status.NodeAllocatableResourceClaimStatuses) > 0 {
		c.forbidden(at, "pods with node allocatable resource claims cannot be resized")
	}
	masked := new.Spec.DeepCopy()
	if asksAsWhole(&new.Spec) || asksAsWhole(&old.Spec) {
		c.resizePod(masked, &old.Spec, at)
	}
	ordered := c.sameOrder(new.Spec.Containers, old.Spec.Containers, at.Child("containers"))
	if !c.sameOrder(new.Spec.InitContainers, old.Spec.InitContainers, at.Child("initContainers")) || !ordered {
		return c.errs
	}
	c.resizeInit(masked.InitContainers, old.Spec.InitContainers, at.Child("initContainers"))
	c.resizeContainers(masked.Containers, old.Spec.Containers, at)
	if len(c.errs) == 0 && !apiequality.Semantic.DeepEqual(masked, &old.Spec) {
		c.forbidden(at, "only cpu and memory resources are mutable")
	}
	return c.errs
}

func isMirror(p *v1.Pod) bool {
	_, ok := p.Annotations[v1.MirrorPodAnnotationKey]
	return ok
}

// metaUpdate: who the pod is stays. The resource version is the server's lock
// against lost updates; without a server there is none to compare.
func (c *checker) metaUpdate(new, old *v1.Pod) {
	is, was := new.ObjectMeta.DeepCopy(), old.ObjectMeta.DeepCopy()
	if is.ResourceVersion == "" {
		is.ResourceVersion = "0"
	}
	at := field.NewPath("metadata")
	c.add(apivalidation.ValidateObjectMetaUpdate(is, was, at)...)
}

// annotationUpdate: what is read when a pod is made cannot be changed later.
func (c *checker) annotationUpdate(new, old map[string]string) {
	frozen := func(key string) bool {
		return key == v1.MirrorPodAnnotationKey || strings.HasPrefix(key, v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
	}
	at := field.NewPath("metadata", "annotations")
	for _, key := range slices.Sorted(maps.Keys(old)) {
		if is, ok := new[key]; frozen(key) && (!ok || is != old[key]) {
			c.forbidden(at.Key(key), "may not be removed or updated")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(new)) {
		if _, ok := old[key]; frozen(key) && !ok {
			c.forbidden(at.Key(key), "may not be added to a pod that is there")
		}
	}
}

// resizable: the node tells of the resources of a running container.
func resizable(p *v1.Pod) bool {
	for i := range p.Status.ContainerStatuses {
		if s := &p.Status.ContainerStatuses[i]; s.State.Running != nil {
			return s.Resources != nil
		}
	}
	return true
}

// asksAsWhole: the pod has resources of its own beside its containers'.
func asksAsWhole(s *v1.PodSpec) bool {
	return s.Resources != nil && len(s.Resources.Requests)+len(s.Resources.Limits) > 0
}

// resizePod checks the resources of the pod as a whole, and leaves in the new spec
// those of the old one.
func (c *checker) resizePod(new, old *v1.PodSpec, at *field.Path) {
	resources := at.Child("resources")
	if new.Resources == nil {
		c.forbidden(resources, "pod-level resources cannot be removed")
		return
	}
	var was v1.ResourceRequirements
	if old.Resources != nil {
		was = *old.Resources
	}
	if fewer(new.Resources.Requests, was.Requests) {
		c.forbidden(resources.Child("requests"), "pod-level resource requests cannot be removed")
	}
	if fewer(new.Resources.Limits, was.Limits) {
		c.forbidden(resources.Child("limits"), "pod-level resource limits cannot be removed")
	}
	r := new.Resources
	r.Requests, r.Limits = mask(r.Requests, was.Requests), mask(r.Limits, was.Limits)
	if old.Resources == nil && len(r.Requests)+len(r.Limits)+len(r.Claims) == 0 {
		new.Resources = nil
	}
	if !apiequality.Semantic.DeepEqual(new.Resources, old.Resources) {
		c.forbidden(at, "only cpu and memory resources are mutable at pod-level")
	}
}

func (c *checker) sameOrder(new, old []v1.Container, at *field.Path) bool {
	if len(new) != len(old) {
		c.forbidden(at, "containers may not be added or removed on resize")
		return false
	}
	same := true
	for i := range old {
		if new[i].Name != old[i].Name {
			c.forbidden(at.Index(i).Child("name"), "containers may not be renamed or reordered on resize")
			same = false
		}
	}
	return same
}

func (c *checker) resizeInit(new, old []v1.Container, at *field.Path) {
	for i := range old {
		at := at.Index(i)
		c.nothingTaken(&new[i], &old[i], at)
		if maskContainer(&new[i], &old[i]); !apiequality.Semantic.DeepEqual(new[i], old[i]) {
			c.forbidden(at, "only cpu and memory resources for init or sidecar containers are mutable")
		}
	}
}

func (c *checker) resizeContainers(new, old []v1.Container, spec *field.Path) {
	for i := range old {
		c.nothingTaken(&new[i], &old[i], spec.Child("containers").Index(i))
		if maskContainer(&new[i], &old[i]); !apiequality.Semantic.DeepEqual(new[i], old[i]) {
			c.forbidden(spec, "only cpu and memory resources are mutable (container "+old[i].Name+")")
		}
	}
}

func (c *checker) nothingTaken(new, old *v1.Container, at *field.Path) {
	if fewer(new.Resources.Requests, old.Resources.Requests) {
		c.forbidden(at.Child("resources", "requests"), "resource requests cannot be removed")
	}
	if fewer(new.Resources.Limits, old.Resources.Limits) {
		c.forbidden(at.Child("resources", "limits"), "resource limits cannot be removed")
	}
}

func fewer(new, old v1.ResourceList) bool {
	for name := range old {
		if _, ok := new[name]; !ok {
			return true
		}
	}
	return false
}

// maskContainer puts the old cpu and memory into the new container, so that what
// differs afterwards is what may not. Claims fall away: the API resizes no container
// that has some.
func maskContainer(new, old *v1.Container) {
	new.Resources = v1.ResourceRequirements{
		Limits:   mask(new.Resources.Limits, old.Resources.Limits),
		Requests: mask(new.Resources.Requests, old.Resources.Requests),
	}
}

func mask(new, old v1.ResourceList) v1.ResourceList {
	if new == nil && old == nil {
		return nil
	}
	masked := v1.ResourceList{}
	maps.Copy(masked, new)
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		delete(masked, name)
		if q, ok := old[name]; ok {
			masked[name] = q
		}
	}
	return masked
}

func recordedQOS(p *v1.Pod) v1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	return qosClass(&p.Spec)
}

// qosClass: by the resources of the pod where it has any, else by its containers'.
func qosClass(s *v1.PodSpec) v1.PodQOSClass {
	var all []v1.ResourceRequirements
	if s.Resources != nil {
		all = append(all, *s.Resources)
	} else {
		for _, list := range [][]v1.Container{s.Containers, s.InitContainers} {
			for i := range list {
				all = append(all, list[i].Resources)
			}
		}
	}
	requests, limits, bounded := v1.ResourceList{}, v1.ResourceList{}, true
	for _, r := range all {
		collect(requests, r.Requests)
		bounded = collect(limits, r.Limits) == 2 && bounded
	}
	switch {
	case len(requests) == 0 && len(limits) == 0:
		return v1.PodQOSBestEffort
	case bounded && apiequality.Semantic.DeepEqual(requests, limits):
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}

// collect adds up the cpu and memory of a list, and counts which of them it has.
func collect(sum, list v1.ResourceList) (n int) {
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		if q, ok := list[name]; ok && q.Cmp(resource.Quantity{}) > 0 {
			q.Add(sum[name])
			sum[name] = q
			n++
		}
	}
	return n
}

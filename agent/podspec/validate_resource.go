package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

// countedResources are counted in whole numbers, like extended resources.
var countedResources = sets.New(v1.ResourcePods, v1.ResourceQuotas, v1.ResourceServices, v1.ResourceReplicationControllers, v1.ResourceSecrets,
	v1.ResourceConfigMaps, v1.ResourcePersistentVolumeClaims, v1.ResourceServicesNodePorts, v1.ResourceServicesLoadBalancers)

// computeResources are what a container of any node may ask for, beside huge pages.
var computeResources = sets.New(v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage)

// plainResources are all names that the API knows without a domain before them.
var plainResources = countedResources.Union(computeResources).Insert(v1.ResourceRequestsCPU, v1.ResourceRequestsMemory,
	v1.ResourceRequestsEphemeralStorage, v1.ResourceLimitsCPU, v1.ResourceLimitsMemory, v1.ResourceLimitsEphemeralStorage,
	v1.ResourceStorage, v1.ResourceRequestsStorage)

func hugePages(name v1.ResourceName) bool {
	return strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
}

// native resources are Kubernetes' own; the others are extended ones.
func native(name v1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), v1.ResourceDefaultNamespacePrefix)
}

// extended: the name has to make a good name of a quota, too.
func extended(name v1.ResourceName) bool {
	return !native(name) && !strings.HasPrefix(string(name), v1.DefaultResourceRequestsPrefix) &&
		len(validation.IsQualifiedName(v1.DefaultResourceRequestsPrefix+string(name))) == 0
}

// elastic resources may be promised to more than can have them at once.
func elastic(name v1.ResourceName) bool { return native(name) && !hugePages(name) }

// resourceName are the rules for the name of any resource.
func (c *checker) resourceName(name v1.ResourceName, at *field.Path) bool {
	n := string(name)
	if bad := validation.IsQualifiedName(n); len(bad) > 0 {
		c.invalid(at, name, bad...)
		return false
	}
	if !strings.Contains(n, "/") && !plainResources.Has(name) && !hugePages(name) && !strings.HasPrefix(n, v1.ResourceRequestsHugePagesPrefix) {
		c.invalid(at, name, "must be a standard resource type or fully qualified, as in example.com/"+n)
		return false
	}
	return true
}

func (c *checker) containerResource(name v1.ResourceName, at *field.Path) {
	c.resourceName(name, at)
	switch {
	case !strings.Contains(string(name), "/"):
		if !computeResources.Has(name) && !hugePages(name) {
			c.invalid(at, name, "must be a standard resource for containers: cpu, memory, ephemeral-storage or hugepages-<size>")
		}
	case !native(name) && !extended(name):
		c.invalid(at, name, "doesn't follow extended resource name standard")
	}
}

func (c *checker) podResource(name v1.ResourceName, at *field.Path) {
	if c.resourceName(name, at) && !resourcehelper.IsSupportedPodLevelResource(name) {
		c.add(field.NotSupported(at, name, sets.List(resourcehelper.SupportedPodLevelResources())))
	}
}

// requirements checks limits and requests and how they stand to each other; named
// checks the name of one resource.
func (c *checker) requirements(r *v1.ResourceRequirements, at *field.Path, named func(v1.ResourceName, *field.Path)) {
	limits, requests := at.Child("limits"), at.Child("requests")
	compute, huge := false, false
	one := func(name v1.ResourceName, q resource.Quantity, at *field.Path) {
		named(name, at)
		c.quantity(name, q, at)
		compute = compute || name == v1.ResourceCPU || name == v1.ResourceMemory
		huge = huge || hugePages(name)
	}
	for _, name := range sorted(r.Limits) {
		one(name, r.Limits[name], limits.Key(string(name)))
	}
	for _, name := range sorted(r.Requests) {
		q := r.Requests[name]
		one(name, q, requests.Key(string(name)))
		limit, ok := r.Limits[name]
		switch {
		case !ok && !elastic(name):
			c.required(limits, "a limit must be set for "+string(name)+", as it cannot be overcommitted")
		case !ok:
		case !elastic(name) && q.Cmp(limit) != 0:
			c.invalid(requests, q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))
		case q.Cmp(limit) > 0:
			c.invalid(requests, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))
		}
	}
	if huge && !compute {
		c.forbidden(at, "HugePages require cpu or memory")
	}
	c.claimRefs(r.Claims, at.Child("claims"))
}

// quantity: how much of the resource there may be.
func (c *checker) quantity(name v1.ResourceName, q resource.Quantity, at *field.Path) {
	if q.Sign() < 0 {
		c.invalid(at, q.String(), apivalidation.IsNegativeErrorMsg)
	}
	if (countedResources.Has(name) || extended(name)) && q.MilliValue()%1000 != 0 {
		c.invalid(at, q.String(), "must be an integer")
	}
	if size, isHuge := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix); isHuge {
		page, err := resource.ParseQuantity(size)
		if err != nil || page.Sign() <= 0 || page.MilliValue()%1000 != 0 || q.Value()%page.Value() != 0 {
			c.invalid(at, q.String(), "must be a whole number of pages of the size in the name "+string(name))
		}
	}
}

// claimRefs: each names a claim of the pod, or one request in it, once. What
// stands before the first slash counts as the claim's name, in wrong names too.
func (c *checker) claimRefs(refs []v1.ResourceClaim, at *field.Path) {
	seen := sets.New[string]() // claims, and claim/request
	for i, ref := range refs {
		at, what := at.Index(i), ref.Name
		if !c.need(at, ref.Name) {
			continue
		}
		switch {
		case seen.Has(ref.Name):
			c.add(field.Duplicate(at, ref.Name))
		case ref.Request == "":
			for other := range seen {
				if claim, _, part := strings.Cut(other, "/"); part && claim == ref.Name {
					c.add(field.Duplicate(at, ref.Name))
				}
			}
			seen.Insert(what)
		default:
			c.label(at.Child("request"), ref.Request)
			if what += "/" + ref.Request; seen.Has(what) {
				c.add(field.Duplicate(at, what))
			}
			seen.Insert(what)
		}
		if !c.claims.Has(ref.Name) {
			missing := field.NotFound(at, ref.Name)
			missing.Detail = "must be one of the names in pod.spec.resourceClaims: " + strings.Join(sets.List(c.claims), ", ")
			c.add(missing)
		}
	}
}

// podResources are the resources of the pod as a whole.
func (c *checker) podResources(spec *field.Path) {
	if c.spec.Overhead != nil {
		c.requirements(&v1.ResourceRequirements{Limits: c.spec.Overhead}, spec.Child("overhead"), c.containerResource)
	}
	r, at := c.spec.Resources, spec.Child("resources")
	switch {
	case r == nil:
		return
	case c.spec.OS != nil && c.spec.OS.Name == v1.Windows:
		c.forbidden(at, "may not be set for a windows pod")
		return
	case r.Claims != nil:
		c.forbidden(at.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	c.requirements(r, at, c.podResource)
	c.sums(r, at)
}

// sums: what the containers ask for fits into what the pod asks for.
func (c *checker) sums(r *v1.ResourceRequirements, at *field.Path) {
	pod := &v1.Pod{Spec: *c.spec}
	asked := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	for _, name := range sorted(asked) {
		q := asked[name]
		if all, ok := r.Requests[name]; ok && q.Cmp(all) > 0 {
			c.invalid(at.Child("requests").Key(string(name)), all.String(), "must be greater than or equal to aggregate container requests of "+q.String())
		}
	}
	limits := resourcehelper.AggregateContainerLimits(pod, resourcehelper.PodResourcesOptions{})
	for _, name := range sorted(limits) {
		q := limits[name]
		if all, ok := r.Limits[name]; ok && hugePages(name) && q.Cmp(all) > 0 {
			c.invalid(at.Child("limits").Key(string(name)), all.String(), "must be greater than or equal to aggregate container limits of "+q.String())
		}
	}
	for i := range c.spec.Containers {
		own := c.spec.Containers[i].Resources.Limits
		for _, name := range sorted(own) {
			q := own[name]
			if all, ok := r.Limits[name]; ok && q.Cmp(all) > 0 {
				c.invalid(at.Child("containers").Index(i).Key(string(name)).Child("limits"), q.String(), "must be less than or equal to pod limits of "+all.String())
			}
		}
	}
}

func sorted(l v1.ResourceList) []v1.ResourceName { return slices.Sorted(maps.Keys(l)) }

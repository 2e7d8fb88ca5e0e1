package podspec

import (
	"math"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checker is what checking the parts of one pod needs to know of the whole.
type checker struct {
	findings
	meta    *metav1.ObjectMeta
	spec    *v1.PodSpec
	pod     *v1.PodSecurityContext      // never nil
	grace   *int64                      // the pod's own; nil if it has none
	volumes map[string]*v1.VolumeSource // those without an error
	claims  sets.Set[string]            // names of resource claims
}

// Validate checks a defaulted pod as the API server checks one that is created:
// the verdict, the paths and the types of the errors are the server's, with the
// feature gates that are on by default and privileged containers allowed. The pod
// is not changed. What only a node can refuse (unknown sysctls, classes that need a
// cluster) is not asked here.
func Validate(p *v1.Pod) field.ErrorList {
	c := newChecker(p)
	c.metaAndSpec()
	c.creation()
	return c.errs
}

func newChecker(p *v1.Pod) *checker {
	c := &checker{meta: &p.ObjectMeta, spec: &p.Spec, pod: p.Spec.SecurityContext, grace: p.Spec.TerminationGracePeriodSeconds}
	if c.pod == nil {
		c.pod = &v1.PodSecurityContext{}
	}
	// The server reads a negative grace period as the shortest one.
	if shortest := int64(1); c.grace != nil && *c.grace < 0 {
		c.grace = &shortest
	}
	c.claims = sets.New[string]()
	for _, claim := range c.spec.ResourceClaims {
		if claim.Name != "" {
			c.claims.Insert(claim.Name)
		}
	}
	return c
}

// metaAndSpec are the rules that hold at every moment of a pod's life.
func (c *checker) metaAndSpec() {
	at := field.NewPath("metadata")
	c.add(apivalidation.ValidateObjectMeta(c.meta, true, apivalidation.NameIsDNSSubdomain, at)...)
	c.finalizers(at.Child("finalizers"))
	c.annotations(at.Child("annotations"))

	at = field.NewPath("spec")
	c.volumeList(at.Child("volumes"))
	c.resourceClaims(at.Child("resourceClaims"))
	c.containers(at.Child("containers"))
	c.initContainers(at.Child("initContainers"))
	c.ephemeralContainers(at.Child("ephemeralContainers"))
	c.podResources(at)
	c.life(at)
	c.network(at)
	c.podSecurity(at, at.Child("securityContext"))
	c.placement(at)
	c.objectNames(at)
	c.system(at)
	c.fileKeyVolumes(at)
	c.serviceAccountTokens(at)
}

// creation are the rules for a pod that is new.
func (c *checker) creation() {
	at := field.NewPath("spec")
	if len(c.spec.EphemeralContainers) > 0 {
		c.forbidden(at.Child("ephemeralContainers"), "cannot be set on create: add them to the pod once it is there")
	}
	if c.spec.NodeName != "" && len(c.spec.SchedulingGates) > 0 {
		c.forbidden(at.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	c.seccompAgrees(at)
	c.appArmorAgrees(at)
}

func (c *checker) finalizers(at *field.Path) {
	for i, name := range c.meta.Finalizers {
		switch name {
		case string(v1.FinalizerKubernetes), metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents:
		default:
			if !strings.Contains(name, "/") {
				c.invalid(at.Index(i), name, "is neither a standard finalizer nor fully qualified, as in example.com/"+name)
			}
		}
	}
}

func (c *checker) life(at *field.Path) {
	if c.grace == nil {
		c.required(at.Child("terminationGracePeriodSeconds"), "")
	}
	chosen(&c.findings, at.Child("restartPolicy"), c.spec.RestartPolicy, v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever)
	if d := c.spec.ActiveDeadlineSeconds; d != nil {
		c.span(at.Child("activeDeadlineSeconds"), *d, 1, math.MaxInt32)
	}
	for i, gate := range c.spec.ReadinessGates {
		name := string(gate.ConditionType)
		c.qualified(at.Child("readinessGates").Index(i).Child("conditionType"), name, name)
	}
	seen := sets.New[string]()
	for i, gate := range c.spec.SchedulingGates {
		at := at.Child("schedulingGates").Index(i)
		c.qualified(at, gate.Name, gate.Name)
		if seen.Has(gate.Name) {
			c.add(field.Duplicate(at, gate.Name))
		}
		seen.Insert(gate.Name)
	}
}

// objectNames: the objects of a cluster that a pod names by a field of its own.
func (c *checker) objectNames(at *field.Path) {
	account := c.serviceAccount()
	for _, o := range []struct{ field, name string }{
		{"serviceAccountName", account},
		{"nodeName", c.spec.NodeName},
		{"priorityClassName", c.spec.PriorityClassName},
	} {
		if o.name != "" {
			c.objectName(at.Child(o.field), o.name)
		}
	}
	if name := c.spec.RuntimeClassName; name != nil {
		c.objectName(at.Child("runtimeClassName"), *name)
	}
	if p := c.spec.PreemptionPolicy; p != nil {
		chosen(&c.findings, at.Child("preemptionPolicy"), *p, v1.PreemptLowerPriority, v1.PreemptNever)
	}
	if g := c.spec.SchedulingGroup; g != nil {
		at := at.Child("schedulingGroup", "podGroupName")
		if g.PodGroupName == nil {
			c.invalid(at, nil, "must specify one of: `podGroupName`")
		} else {
			c.objectName(at, *g.PodGroupName)
		}
	}
	c.add(metavalidation.ValidateLabels(c.spec.NodeSelector, at.Child("nodeSelector"))...)
}

// serviceAccount is the account's name, by whichever of its two fields.
func (c *checker) serviceAccount() string {
	if c.spec.ServiceAccountName != "" {
		return c.spec.ServiceAccountName
	}
	return c.spec.DeprecatedServiceAccount
}

// serviceAccountTokens: a token is somebody's.
func (c *checker) serviceAccountTokens(at *field.Path) {
	if c.serviceAccount() != "" {
		return
	}
	for i := range c.spec.Volumes {
		p := c.spec.Volumes[i].Projected
		if p == nil {
			continue
		}
		for j := range p.Sources {
			if p.Sources[j].ServiceAccountToken != nil {
				c.forbidden(at.Child("volumes").Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"),
					"must not be specified when serviceAccountName is not set")
			}
		}
	}
}

func (c *checker) resourceClaims(at *field.Path) {
	_, mirror := c.meta.Annotations[v1.MirrorPodAnnotationKey]
	seen := sets.New[string]()
	for i, claim := range c.spec.ResourceClaims {
		at := at.Index(i)
		if mirror {
			c.forbidden(field.NewPath(""), "static pods do not support resource claims")
			continue
		}
		switch {
		case claim.Name == "":
			c.required(at.Child("name"), "")
		case seen.Has(claim.Name):
			c.add(field.Duplicate(at.Child("name"), claim.Name))
		default:
			c.label(at.Child("name"), claim.Name)
			seen.Insert(claim.Name)
		}
		if (claim.ResourceClaimName == nil) == (claim.ResourceClaimTemplateName == nil) {
			c.invalid(at, claim.Name, "must specify exactly one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
		if name := claim.ResourceClaimName; name != nil {
			c.objectName(at.Child("resourceClaimName"), *name)
		}
		if name := claim.ResourceClaimTemplateName; name != nil {
			c.objectName(at.Child("resourceClaimTemplateName"), *name)
		}
	}
}

// each visits every container of the pod: init, ordinary, ephemeral.
func (c *checker) each(at *field.Path, visit func(*v1.Container, *field.Path)) {
	for i := range c.spec.InitContainers {
		visit(&c.spec.InitContainers[i], at.Child("initContainers").Index(i))
	}
	for i := range c.spec.Containers {
		visit(&c.spec.Containers[i], at.Child("containers").Index(i))
	}
	for i := range c.spec.EphemeralContainers {
		visit((*v1.Container)(&c.spec.EphemeralContainers[i].EphemeralContainerCommon), at.Child("ephemeralContainers").Index(i))
	}
}

package podspec

import (
	"reflect"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
)

// Default fills in what the API server of Kubernetes 1.36 fills in when a pod is
// created, no more and no less. It is idempotent. test/differential compares it
// with upstream's.
func Default(p *v1.Pod) { walk(reflect.ValueOf(p).Elem()) }

// defaulters holds what is filled in, one function per type. The walk calls
// them from the outside in, for every value of the type wherever it stands in a
// pod: a field that gains a default needs a line here and nothing else. Outside
// in matters for resources: requests are copied and added up before they are rounded.
var defaulters = map[reflect.Type]func(any){
	reflect.TypeFor[v1.Pod]():                           as(defaultPod),
	reflect.TypeFor[v1.PodSpec]():                       as(defaultPodSpec),
	reflect.TypeFor[v1.Container]():                     as(defaultContainer),
	reflect.TypeFor[v1.EphemeralContainerCommon]():      as(func(c *v1.EphemeralContainerCommon) { defaultContainer((*v1.Container)(c)) }),
	reflect.TypeFor[v1.ResourceList]():                  as(defaultResources),
	reflect.TypeFor[v1.ContainerPort]():                 as(func(p *v1.ContainerPort) { set(&p.Protocol, v1.ProtocolTCP) }),
	reflect.TypeFor[v1.Probe]():                         as(defaultProbe),
	reflect.TypeFor[v1.HTTPGetAction]():                 as(func(a *v1.HTTPGetAction) { set(&a.Path, "/"); set(&a.Scheme, v1.URISchemeHTTP) }),
	reflect.TypeFor[v1.GRPCAction]():                    as(func(a *v1.GRPCAction) { point(&a.Service, "") }),
	reflect.TypeFor[v1.ObjectFieldSelector]():           as(func(f *v1.ObjectFieldSelector) { set(&f.APIVersion, "v1") }),
	reflect.TypeFor[v1.FileKeySelector]():               as(func(f *v1.FileKeySelector) { point(&f.Optional, false) }),
	reflect.TypeFor[v1.VolumeSource]():                  as(defaultVolume),
	reflect.TypeFor[v1.HostPathVolumeSource]():          as(func(v *v1.HostPathVolumeSource) { point(&v.Type, v1.HostPathUnset) }),
	reflect.TypeFor[v1.SecretVolumeSource]():            as(func(v *v1.SecretVolumeSource) { point(&v.DefaultMode, v1.SecretVolumeSourceDefaultMode) }),
	reflect.TypeFor[v1.ConfigMapVolumeSource]():         as(func(v *v1.ConfigMapVolumeSource) { point(&v.DefaultMode, v1.ConfigMapVolumeSourceDefaultMode) }),
	reflect.TypeFor[v1.DownwardAPIVolumeSource]():       as(func(v *v1.DownwardAPIVolumeSource) { point(&v.DefaultMode, v1.DownwardAPIVolumeSourceDefaultMode) }),
	reflect.TypeFor[v1.ProjectedVolumeSource]():         as(func(v *v1.ProjectedVolumeSource) { point(&v.DefaultMode, v1.ProjectedVolumeSourceDefaultMode) }),
	reflect.TypeFor[v1.ServiceAccountTokenProjection](): as(func(v *v1.ServiceAccountTokenProjection) { point(&v.ExpirationSeconds, 3600) }),
	reflect.TypeFor[v1.PersistentVolumeClaimSpec]():     as(func(s *v1.PersistentVolumeClaimSpec) { point(&s.VolumeMode, v1.PersistentVolumeFilesystem) }),
	reflect.TypeFor[v1.ISCSIVolumeSource]():             as(func(v *v1.ISCSIVolumeSource) { set(&v.ISCSIInterface, "default") }),
	reflect.TypeFor[v1.RBDVolumeSource]():               as(defaultRBD),
	reflect.TypeFor[v1.AzureDiskVolumeSource]():         as(defaultAzureDisk),
	reflect.TypeFor[v1.ScaleIOVolumeSource]():           as(func(v *v1.ScaleIOVolumeSource) { set(&v.StorageMode, "ThinProvisioned"); set(&v.FSType, "xfs") }),
}

func as[T any](f func(*T)) func(any) { return func(p any) { f(p.(*T)) } }

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func point[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

var apiPackage = reflect.TypeFor[v1.Pod]().PkgPath()

func walk(v reflect.Value) {
	if v.CanAddr() && v.Type().PkgPath() == apiPackage {
		if f := defaulters[v.Type()]; f != nil {
			f(v.Addr().Interface())
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			walk(v.Elem())
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			walk(v.Index(i))
		}
	case reflect.Struct:
		if v.Type().PkgPath() != apiPackage {
			return // quantities, times: nothing of the pod API inside
		}
		for i := range v.NumField() {
			walk(v.Field(i))
		}
	}
}

func defaultPod(p *v1.Pod) {
	s := &p.Spec
	for _, cs := range [][]v1.Container{s.Containers, s.InitContainers} {
		for i := range cs {
			fill(&cs[i].Resources.Requests, cs[i].Resources.Limits)
			for j := range cs[i].Ports {
				if s.HostNetwork {
					set(&cs[i].Ports[j].HostPort, cs[i].Ports[j].ContainerPort)
				}
			}
		}
	}
	defaultPodResources(p)
	point(&s.EnableServiceLinks, v1.DefaultEnableServiceLinks)
}

// fill copies what to lacks from from.
func fill(to *v1.ResourceList, from v1.ResourceList) {
	for name, q := range from {
		if _, ok := (*to)[name]; ok {
			continue
		}
		if *to == nil {
			*to = v1.ResourceList{}
		}
		(*to)[name] = q.DeepCopy()
	}
}

// defaultPodResources completes resources of the whole pod that are given in
// part (KEP-2837): huge page limits from those of the containers, then, where
// there are limits, requests from the containers' requests or else the limits.
func defaultPodResources(p *v1.Pod) {
	r := p.Spec.Resources
	if r == nil || len(r.Limits) == 0 && len(r.Requests) == 0 {
		return
	}
	limits := podresource.AggregateContainerLimits(p, podresource.PodResourcesOptions{})
	fill(&r.Limits, only(limits, func(name v1.ResourceName) bool {
		_, requested := r.Requests[name]
		return hugePages(name) && !requested
	}))
	if len(r.Limits) == 0 {
		return
	}
	requests := podresource.AggregateContainerRequests(p, podresource.PodResourcesOptions{})
	fill(&r.Requests, only(requests, func(name v1.ResourceName) bool { return !hugePages(name) }))
	fill(&r.Requests, only(r.Limits, func(v1.ResourceName) bool { return true }))
}

// only keeps the resources that a whole pod can have and that keep says yes to.
func only(l v1.ResourceList, keep func(v1.ResourceName) bool) v1.ResourceList {
	kept := v1.ResourceList{}
	for name, q := range l {
		if podresource.IsSupportedPodLevelResource(name) && keep(name) {
			kept[name] = q
		}
	}
	return kept
}

func defaultPodSpec(s *v1.PodSpec) {
	set(&s.DNSPolicy, v1.DNSClusterFirst)
	set(&s.RestartPolicy, v1.RestartPolicyAlways)
	set(&s.SchedulerName, v1.DefaultSchedulerName)
	point(&s.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
	point(&s.SecurityContext, v1.PodSecurityContext{})
}

func defaultContainer(c *v1.Container) {
	set(&c.ImagePullPolicy, pullPolicy(c.Image))
	set(&c.TerminationMessagePath, v1.TerminationMessagePathDefault)
	set(&c.TerminationMessagePolicy, v1.TerminationMessageReadFile)
}

// pullPolicy is Always for the tag "latest", said or implied, and IfNotPresent
// for all else, also for what is no image's name.
func pullPolicy(image string) v1.PullPolicy {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return v1.PullIfNotPresent
	}
	tagged, ok := named.(reference.Tagged)
	if ok && tagged.Tag() == "latest" || reference.IsNameOnly(named) {
		return v1.PullAlways
	}
	return v1.PullIfNotPresent
}

// defaultResources rounds up to thousandths, the finest that the API keeps.
func defaultResources(l *v1.ResourceList) {
	for name, q := range *l {
		q.RoundUp(resource.Milli)
		(*l)[name] = q
	}
}

func defaultProbe(p *v1.Probe) {
	set(&p.TimeoutSeconds, 1)
	set(&p.PeriodSeconds, 10)
	set(&p.SuccessThreshold, 1)
	set(&p.FailureThreshold, 3)
}

func defaultVolume(v *v1.VolumeSource) {
	if *v == (v1.VolumeSource{}) {
		v.EmptyDir = &v1.EmptyDirVolumeSource{}
	}
	if v.Image != nil {
		set(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
	}
}

func defaultRBD(v *v1.RBDVolumeSource) {
	set(&v.RBDPool, "rbd")
	set(&v.RadosUser, "admin")
	set(&v.Keyring, "/etc/ceph/keyring")
}

func defaultAzureDisk(v *v1.AzureDiskVolumeSource) {
	point(&v.CachingMode, v1.AzureDataDiskCachingReadWrite)
	point(&v.FSType, "ext4")
	point(&v.ReadOnly, false)
	point(&v.Kind, v1.AzureSharedBlobDisk)
}

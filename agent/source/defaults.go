package source

import (
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// defaulters holds what the API server fills in, one function per type. The
// walk calls them from the outside in, for every value of the type wherever it
// stands in a pod: a field that gains a default needs a line here and nothing else.
var defaulters = map[reflect.Type]func(any){
	reflect.TypeFor[v1.Pod]():                           as(defaultWholePod),
	reflect.TypeFor[v1.PodSpec]():                       as(defaultPodSpec),
	reflect.TypeFor[v1.Container]():                     as(defaultContainer),
	reflect.TypeFor[v1.ContainerPort]():                 as(func(p *v1.ContainerPort) { set(&p.Protocol, v1.ProtocolTCP) }),
	reflect.TypeFor[v1.Probe]():                         as(defaultProbe),
	reflect.TypeFor[v1.HTTPGetAction]():                 as(func(a *v1.HTTPGetAction) { set(&a.Path, "/"); set(&a.Scheme, v1.URISchemeHTTP) }),
	reflect.TypeFor[v1.GRPCAction]():                    as(func(a *v1.GRPCAction) { point(&a.Service, "") }),
	reflect.TypeFor[v1.VolumeSource]():                  as(defaultVolume),
	reflect.TypeFor[v1.HostPathVolumeSource]():          as(func(v *v1.HostPathVolumeSource) { point(&v.Type, v1.HostPathUnset) }),
	reflect.TypeFor[v1.SecretVolumeSource]():            as(func(v *v1.SecretVolumeSource) { point(&v.DefaultMode, 0o644) }),
	reflect.TypeFor[v1.ConfigMapVolumeSource]():         as(func(v *v1.ConfigMapVolumeSource) { point(&v.DefaultMode, 0o644) }),
	reflect.TypeFor[v1.DownwardAPIVolumeSource]():       as(func(v *v1.DownwardAPIVolumeSource) { point(&v.DefaultMode, 0o644) }),
	reflect.TypeFor[v1.ProjectedVolumeSource]():         as(func(v *v1.ProjectedVolumeSource) { point(&v.DefaultMode, 0o644) }),
	reflect.TypeFor[v1.ServiceAccountTokenProjection](): as(func(v *v1.ServiceAccountTokenProjection) { point(&v.ExpirationSeconds, 3600) }),
	reflect.TypeFor[v1.ObjectFieldSelector]():           as(func(f *v1.ObjectFieldSelector) { set(&f.APIVersion, "v1") }),
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

// defaultPod fills in what the API server would. It is idempotent.
func defaultPod(pod *v1.Pod) {
	set(&pod.APIVersion, "v1")
	set(&pod.Kind, "Pod")
	walkDefaults(reflect.ValueOf(pod).Elem())
}

func walkDefaults(v reflect.Value) {
	if v.Kind() == reflect.Struct && v.CanAddr() {
		if f := defaulters[v.Type()]; f != nil {
			f(v.Addr().Interface())
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			walkDefaults(v.Elem())
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			walkDefaults(v.Index(i))
		}
	case reflect.Struct:
		if v.Type().PkgPath() != reflect.TypeFor[v1.Pod]().PkgPath() {
			return // quantities, times: nothing of the pod API inside
		}
		for i := range v.NumField() {
			walkDefaults(v.Field(i))
		}
	}
}

func defaultWholePod(pod *v1.Pod) {
	set(&pod.Namespace, metav1.NamespaceDefault)
	point(&pod.Spec.EnableServiceLinks, v1.DefaultEnableServiceLinks)
}

func defaultPodSpec(s *v1.PodSpec) {
	set(&s.DNSPolicy, v1.DNSClusterFirst)
	set(&s.RestartPolicy, v1.RestartPolicyAlways)
	set(&s.SchedulerName, v1.DefaultSchedulerName)
	point(&s.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
	if s.SecurityContext == nil {
		s.SecurityContext = &v1.PodSecurityContext{}
	}
	// What the API server's priority admission knows without any PriorityClass object.
	switch s.PriorityClassName {
	case "system-node-critical":
		point(&s.Priority, 2000001000)
	case "system-cluster-critical":
		point(&s.Priority, 2000000000)
	}
	if !s.HostNetwork {
		return
	}
	for _, cs := range [][]v1.Container{s.InitContainers, s.Containers} {
		for i := range cs {
			for j := range cs[i].Ports {
				set(&cs[i].Ports[j].HostPort, cs[i].Ports[j].ContainerPort)
			}
		}
	}
}

func defaultContainer(c *v1.Container) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = v1.PullIfNotPresent
		if isLatest(c.Image) {
			c.ImagePullPolicy = v1.PullAlways
		}
	}
	set(&c.TerminationMessagePath, v1.TerminationMessagePathDefault)
	set(&c.TerminationMessagePolicy, v1.TerminationMessageReadFile)
	for _, l := range []v1.ResourceList{c.Resources.Limits, c.Resources.Requests} {
		for name, q := range l {
			q.RoundUp(resource.Milli)
			l[name] = q
		}
	}
	for name, q := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; ok {
			continue
		}
		if c.Resources.Requests == nil {
			c.Resources.Requests = v1.ResourceList{}
		}
		c.Resources.Requests[name] = q.DeepCopy()
	}
}

// isLatest: the tag is "latest", or there is neither tag nor digest.
func isLatest(image string) bool {
	if strings.Contains(image, "@") {
		return false
	}
	last := image[strings.LastIndexByte(image, '/')+1:]
	_, tag, ok := strings.Cut(last, ":")
	return !ok || tag == "latest"
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
}

// defaultSecret moves stringData into data, as the API server does on writing.
func defaultSecret(s *v1.Secret, namespace string) {
	s.Namespace = namespace
	set(&s.Type, v1.SecretTypeOpaque)
	for k, v := range s.StringData {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
}

// clearServerFields drops what only an API server writes, so that the output of
// `kubectl get -o yaml` is a manifest too.
func clearServerFields(m *metav1.ObjectMeta) {
	m.ResourceVersion, m.Generation = "", 0
	m.CreationTimestamp = metav1.Time{}
	m.DeletionTimestamp, m.DeletionGracePeriodSeconds = nil, nil
	m.ManagedFields, m.OwnerReferences = nil, nil
}

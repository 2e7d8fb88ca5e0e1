package source

import (
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// uidPattern bounds a UID that a manifest gives: it becomes part of paths and
// of cgroup names.
var uidPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,62}$`)

// invalid collects one error per message.
func invalid(path *field.Path, value any, messages []string) (errs field.ErrorList) {
	for _, m := range messages {
		errs = append(errs, field.Invalid(path, value, m))
	}
	return errs
}

// oneOf checks an enumeration, which may be unset where the type allows it.
func oneOf[T ~string](path *field.Path, value T, allowed ...T) field.ErrorList {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(path, value, allowed)}
}

func validateMeta(m *metav1.ObjectMeta, name func(string, bool) []string) (errs field.ErrorList) {
	path := field.NewPath("metadata")
	if m.Name == "" {
		message := "a name is required"
		if m.GenerateName != "" {
			message = "a name is required: no API server generates one from generateName here"
		}
		errs = append(errs, field.Required(path.Child("name"), message))
	} else {
		errs = append(errs, invalid(path.Child("name"), m.Name, name(m.Name, false))...)
	}
	errs = append(errs, invalid(path.Child("namespace"), m.Namespace, apivalidation.ValidateNamespaceName(m.Namespace, false))...)
	if m.UID != "" && !uidPattern.MatchString(string(m.UID)) {
		errs = append(errs, field.Invalid(path.Child("uid"), m.UID, "must be at most 63 letters, digits and '-'"))
	}
	errs = append(errs, metavalidation.ValidateLabels(m.Labels, path.Child("labels"))...)
	return append(errs, apivalidation.ValidateAnnotations(m.Annotations, path.Child("annotations"))...)
}

const maxObject = 1 << 20 // bytes of a ConfigMap or a Secret, as in the API

func validateConfigMap(cm *v1.ConfigMap) field.ErrorList {
	errs := validateMeta(&cm.ObjectMeta, apivalidation.NameIsDNSSubdomain)
	size := 0
	for k, v := range cm.Data {
		size += len(v)
		errs = append(errs, invalid(field.NewPath("data").Key(k), k, validation.IsConfigMapKey(k))...)
		if _, ok := cm.BinaryData[k]; ok {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, "duplicate of key present in binaryData"))
		}
	}
	for k, v := range cm.BinaryData {
		size += len(v)
		errs = append(errs, invalid(field.NewPath("binaryData").Key(k), k, validation.IsConfigMapKey(k))...)
	}
	if size > maxObject {
		errs = append(errs, field.TooLong(field.NewPath("data"), "", maxObject))
	}
	return errs
}

func validateSecret(s *v1.Secret) field.ErrorList {
	errs := validateMeta(&s.ObjectMeta, apivalidation.NameIsDNSSubdomain)
	size := 0
	for k, v := range s.Data {
		size += len(v)
		errs = append(errs, invalid(field.NewPath("data").Key(k), k, validation.IsConfigMapKey(k))...)
	}
	if size > maxObject {
		errs = append(errs, field.TooLong(field.NewPath("data"), "", maxObject))
	}
	for typ, key := range map[v1.SecretType]string{v1.SecretTypeDockerConfigJson: v1.DockerConfigJsonKey, v1.SecretTypeDockercfg: v1.DockerConfigKey} {
		if _, ok := s.Data[key]; s.Type == typ && !ok {
			errs = append(errs, field.Required(field.NewPath("data").Key(key), "a secret of type "+string(typ)+" needs it"))
		}
	}
	return errs
}

// validatePod checks a defaulted pod. Paths and, where they are known, messages
// are those of the API server.
func validatePod(pod *v1.Pod) field.ErrorList {
	errs := validateMeta(&pod.ObjectMeta, apivalidation.NameIsDNSSubdomain)
	path, s := field.NewPath("spec"), &pod.Spec
	c := specContext{spec: s, volumes: map[string]bool{}, names: sets.New[string](), hostPorts: sets.New[string]()}
	errs = append(errs, c.volumeList(path.Child("volumes"))...)
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(path.Child("containers"), ""))
	}
	for i := range s.InitContainers {
		errs = append(errs, c.container(&s.InitContainers[i], path.Child("initContainers").Index(i), true)...)
	}
	for i := range s.Containers {
		errs = append(errs, c.container(&s.Containers[i], path.Child("containers").Index(i), false)...)
	}
	errs = append(errs, oneOf(path.Child("restartPolicy"), s.RestartPolicy, v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever)...)
	errs = append(errs, validateTimes(s, path)...)
	errs = append(errs, validateDNS(s, path)...)
	errs = append(errs, validateNaming(s, path)...)
	errs = append(errs, validatePodSecurity(s, path.Child("securityContext"))...)
	errs = append(errs, validatePlacement(s, path)...)
	return errs
}

func validateTimes(s *v1.PodSpec, path *field.Path) (errs field.ErrorList) {
	if a := s.ActiveDeadlineSeconds; a != nil && (*a < 1 || *a > math.MaxInt32) {
		errs = append(errs, field.Invalid(path.Child("activeDeadlineSeconds"), *a, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	if g := *s.TerminationGracePeriodSeconds; g < 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), g, apivalidation.IsNegativeErrorMsg))
	} else if g > math.MaxInt32 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), g, validation.InclusiveRangeError(0, math.MaxInt32)))
	}
	return errs
}

func validateDNS(s *v1.PodSpec, path *field.Path) (errs field.ErrorList) {
	errs = oneOf(path.Child("dnsPolicy"), s.DNSPolicy, v1.DNSClusterFirstWithHostNet, v1.DNSClusterFirst, v1.DNSDefault, v1.DNSNone)
	path = path.Child("dnsConfig")
	c := s.DNSConfig
	if c == nil {
		c = &v1.PodDNSConfig{}
	}
	if s.DNSPolicy == v1.DNSNone && len(c.Nameservers) == 0 {
		errs = append(errs, field.Required(path.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"))
	}
	if len(c.Nameservers) > 3 {
		errs = append(errs, field.Invalid(path.Child("nameservers"), c.Nameservers, "must not have more than 3 nameservers"))
	}
	for i, ns := range c.Nameservers {
		errs = append(errs, validation.IsValidIP(path.Child("nameservers").Index(i), ns)...)
	}
	if len(c.Searches) > 32 || len(strings.Join(c.Searches, " ")) > 2048 {
		errs = append(errs, field.Invalid(path.Child("searches"), c.Searches, "must not have more than 32 search paths, nor more than 2048 characters (including spaces) in them"))
	}
	for i, search := range c.Searches {
		if search != "." {
			errs = append(errs, invalid(path.Child("searches").Index(i), search, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(search, ".")))...)
		}
	}
	for i, o := range c.Options {
		at := path.Child("options").Index(i)
		if o.Name == "" {
			errs = append(errs, field.Required(at, "must not be empty"))
		}
		if strings.ContainsAny(o.Name, " \t\n") || o.Value != nil && strings.ContainsAny(*o.Value, " \t\n") {
			errs = append(errs, field.Invalid(at, o.Name, "must not contain white space"))
		}
	}
	return errs
}

func validateNaming(s *v1.PodSpec, path *field.Path) (errs field.ErrorList) {
	if s.Hostname != "" {
		errs = append(errs, invalid(path.Child("hostname"), s.Hostname, validation.IsDNS1123Label(s.Hostname))...)
	}
	if s.Subdomain != "" {
		errs = append(errs, invalid(path.Child("subdomain"), s.Subdomain, validation.IsDNS1123Label(s.Subdomain))...)
	}
	for i, a := range s.HostAliases {
		at := path.Child("hostAliases").Index(i)
		if _, err := netip.ParseAddr(a.IP); err != nil {
			errs = append(errs, field.Invalid(at.Child("ip"), a.IP, "must be a valid IP address"))
		}
		for j, h := range a.Hostnames {
			errs = append(errs, invalid(at.Child("hostnames").Index(j), h, validation.IsDNS1123Subdomain(h))...)
		}
	}
	for i, r := range s.ImagePullSecrets {
		if at := path.Child("imagePullSecrets").Index(i).Child("name"); r.Name == "" {
			errs = append(errs, field.Required(at, ""))
		} else {
			errs = append(errs, invalid(at, r.Name, apivalidation.NameIsDNSSubdomain(r.Name, false))...)
		}
	}
	return errs
}

func validatePlacement(s *v1.PodSpec, path *field.Path) (errs field.ErrorList) {
	errs = metavalidation.ValidateLabels(s.NodeSelector, path.Child("nodeSelector"))
	for i, t := range s.Tolerations {
		at := path.Child("tolerations").Index(i)
		errs = append(errs, oneOf(at.Child("operator"), t.Operator, "", v1.TolerationOpExists, v1.TolerationOpEqual)...)
		errs = append(errs, oneOf(at.Child("effect"), t.Effect, "", v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute)...)
		if t.Key != "" {
			errs = append(errs, metavalidation.ValidateLabelName(t.Key, at.Child("key"))...)
		} else if t.Operator != v1.TolerationOpExists {
			errs = append(errs, field.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
	}
	if s.PriorityClassName != "" && s.Priority == nil {
		errs = append(errs, field.Invalid(path.Child("priorityClassName"), s.PriorityClassName, "without an API server only system-node-critical and system-cluster-critical are known: set priority to a number"))
	}
	if s.OS != nil {
		errs = append(errs, oneOf(path.Child("os", "name"), s.OS.Name, v1.Linux, v1.Windows)...)
	}
	if s.PreemptionPolicy != nil {
		errs = append(errs, oneOf(path.Child("preemptionPolicy"), *s.PreemptionPolicy, v1.PreemptLowerPriority, v1.PreemptNever)...)
	}
	return errs
}

// within checks a number against an inclusive range.
func within(path *field.Path, value, low, high int64) field.ErrorList {
	if value < low || value > high {
		return field.ErrorList{field.Invalid(path, value, fmt.Sprintf("must be between %d and %d, inclusive", low, high))}
	}
	return nil
}

package source

import (
	"regexp"

	"github.com/berthd/berth/agent/podspec"
	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
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

func validateMeta(m *metav1.ObjectMeta, name func(string, bool) []string) (errs field.ErrorList) {
	path := field.NewPath("metadata")
	if m.Name == "" {
		message := "a name is required"
		if m.GenerateName != "" {
			message = nameless
		}
		errs = append(errs, field.Required(path.Child("name"), message))
	} else {
		errs = append(errs, invalid(path.Child("name"), m.Name, name(m.Name, false))...)
	}
	errs = append(errs, invalid(path.Child("namespace"), m.Namespace, apivalidation.ValidateNamespaceName(m.Namespace, false))...)
	errs = append(errs, validateUID(m, path)...)
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

// validatePod checks a completed pod: what the API server finds, and what only
// matters without one.
func validatePod(p *v1.Pod) field.ErrorList {
	errs := podspec.Validate(p)
	path := field.NewPath("metadata")
	if p.Name == "" && p.GenerateName != "" {
		errs = append(errs, field.Required(path.Child("name"), nameless))
	}
	return append(errs, validateUID(&p.ObjectMeta, path)...)
}

const nameless = "a name is required: no API server generates one from generateName here"

func validateUID(m *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	if m.UID != "" && !uidPattern.MatchString(string(m.UID)) {
		return field.ErrorList{field.Invalid(path.Child("uid"), m.UID, "must be at most 63 letters, digits and '-'")}
	}
	return nil
}

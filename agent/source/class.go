package source

import (
	"strings"

	"github.com/berthd/berth/agent/podspec"
	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The priorities that are built in, and the highest that others may have.
const (
	systemPrefix        = "system-"
	systemNode          = "system-node-critical"
	systemCluster       = "system-cluster-critical"
	systemNodeValue     = 2000001000
	systemClusterValue  = 2000000000
	highestUserPriority = 1000000000
)

var systemPriorities = map[string]int32{systemNode: systemNodeValue, systemCluster: systemClusterValue}

func defaultPriorityClass(pc *schedulingv1.PriorityClass) {
	if pc.PreemptionPolicy == nil {
		policy := v1.PreemptLowerPriority
		pc.PreemptionPolicy = &policy
	}
}

// validateClassMeta checks the metadata of an object that belongs to no namespace.
func validateClassMeta(m *metav1.ObjectMeta) field.ErrorList {
	path := field.NewPath("metadata")
	errs := apivalidation.ValidateObjectMeta(m, false, apivalidation.NameIsDNSSubdomain, path)
	if m.Name == "" && m.GenerateName != "" {
		errs = append(errs, field.Required(path.Child("name"), nameless))
	}
	return errs
}

func validatePriorityClass(pc *schedulingv1.PriorityClass) field.ErrorList {
	errs := validateClassMeta(&pc.ObjectMeta)
	system, known := systemPriorities[pc.Name]
	switch {
	case known && (pc.Value != system || pc.GlobalDefault):
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"), pc.Name+" is built in, with another value and not as the default: remove the document"))
	case !known && strings.HasPrefix(pc.Name, systemPrefix):
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"), "names that begin with "+systemPrefix+" are the system's own: only "+systemCluster+" and "+systemNode+" are known"))
	case !known && pc.Value > highestUserPriority:
		errs = append(errs, field.Forbidden(field.NewPath("value"), "must not be more than 1000000000"))
	}
	switch policy := *pc.PreemptionPolicy; policy {
	case v1.PreemptLowerPriority, v1.PreemptNever:
	case "":
		errs = append(errs, field.Required(field.NewPath("preemptionPolicy"), ""))
	default:
		errs = append(errs, field.NotSupported(field.NewPath("preemptionPolicy"), policy, []v1.PreemptionPolicy{v1.PreemptLowerPriority, v1.PreemptNever}))
	}
	return errs
}

func validateRuntimeClass(rc *nodev1.RuntimeClass) field.ErrorList {
	errs := validateClassMeta(&rc.ObjectMeta)
	if path := field.NewPath("handler"); rc.Handler == "" {
		errs = append(errs, field.Required(path, ""))
	} else {
		errs = append(errs, invalid(path, rc.Handler, apivalidation.NameIsDNSLabel(rc.Handler, false))...)
	}
	return append(errs, validateClassPod(rc)...)
}

// validateClassPod checks what a class gives to pods by giving it to one.
func validateClassPod(rc *nodev1.RuntimeClass) (errs field.ErrorList) {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "any"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "any", Image: "any"}}}}
	if rc.Overhead != nil {
		p.Spec.Overhead = rc.Overhead.PodFixed
	}
	if s := rc.Scheduling; s != nil {
		p.Spec.NodeSelector = s.NodeSelector
		p.Spec.Tolerations = s.Tolerations
		seen := map[v1.Toleration]bool{}
		for i, t := range s.Tolerations {
			t.TolerationSeconds = nil
			if seen[t] {
				errs = append(errs, field.Duplicate(field.NewPath("scheduling", "tolerations").Index(i), t))
			}
			seen[t] = true
		}
	}
	p = p.DeepCopy()
	complete(p)
	there := strings.NewReplacer("spec.overhead.limits", "overhead.podFixed", "spec.nodeSelector", "scheduling.nodeSelector", "spec.tolerations", "scheduling.tolerations")
	for _, e := range podspec.Validate(p) {
		e.Field = there.Replace(e.Field)
		errs = append(errs, e)
	}
	return errs
}

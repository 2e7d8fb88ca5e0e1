package volume

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func (f Facts) downward(p Payload, items []v1.DownwardAPIVolumeFile, fallback *int32) error {
	var failed []error
	for i := range items {
		item := &items[i]
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = f.field(item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = f.resource(item.ResourceFieldRef)
		default:
			err = invalid("downwardAPI item %q has neither fieldRef nor resourceFieldRef", item.Path)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		p[item.Path] = File{Data: []byte(text), Mode: modeOf(item.Mode, fallback)}
	}
	return aggregate(failed)
}

// field renders the fields that Kubernetes allows in a volume; the others can
// only be had as environment variables.
func (f Facts) field(fieldPath string) (string, error) {
	meta := &f.Pod.ObjectMeta
	switch fieldPath {
	case "metadata.name":
		return meta.Name, nil
	case "metadata.namespace":
		return meta.Namespace, nil
	case "metadata.uid":
		return string(meta.UID), nil
	case "metadata.labels":
		return quoteMap(meta.Labels), nil
	case "metadata.annotations":
		return quoteMap(meta.Annotations), nil
	}
	if key, ok := subscript(fieldPath, "metadata.labels"); ok {
		return meta.Labels[key], nil
	}
	if key, ok := subscript(fieldPath, "metadata.annotations"); ok {
		return meta.Annotations[key], nil
	}
	return "", invalid("unsupported fieldPath: %s (a volume can hold metadata.name, .namespace, .uid, .labels, .annotations, and single labels and annotations as metadata.labels['key'])", fieldPath)
}

func subscript(fieldPath, field string) (string, bool) {
	rest, ok := strings.CutPrefix(fieldPath, field+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

// quoteMap renders key="value" lines in the order of keys, as the kubelet does.
func quoteMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, fmt.Sprintf("%v=%q", k, m[k]))
	}
	return strings.Join(lines, "\n")
}

// resource renders limits.* and requests.* of a container in units of the
// divisor, rounded up. A limit that is not set is the pod's, else the node's
// allocatable.
func (f Facts) resource(ref *v1.ResourceFieldSelector) (string, error) {
	r, ok := f.resources(ref.ContainerName)
	if !ok {
		return "", invalid("resourceFieldRef names container %q, which the pod does not have", ref.ContainerName)
	}
	what, name, _ := strings.Cut(ref.Resource, ".")
	known := name == "cpu" || name == "memory" || name == "ephemeral-storage" || strings.HasPrefix(name, v1.ResourceHugePagesPrefix)
	if (what != "limits" && what != "requests") || !known {
		return "", invalid("unsupported container resource: %s", ref.Resource)
	}
	list := r.Requests
	if what == "limits" {
		list = r.Limits
	}
	quantity := list[v1.ResourceName(name)]
	if what == "limits" && quantity.IsZero() && !strings.HasPrefix(name, v1.ResourceHugePagesPrefix) {
		quantity = f.unlimited(v1.ResourceName(name))
	}
	return inUnits(quantity, ref.Divisor, name == "cpu"), nil
}

func (f Facts) unlimited(name v1.ResourceName) resource.Quantity {
	if pod := f.Pod.Spec.Resources; pod != nil {
		if q, ok := pod.Limits[name]; ok && !q.IsZero() {
			return q
		}
	}
	return f.Allocatable[name]
}

func (f Facts) resources(container string) (v1.ResourceRequirements, bool) {
	for _, list := range [][]v1.Container{f.Pod.Spec.Containers, f.Pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == container {
				return list[i].Resources, true
			}
		}
	}
	return v1.ResourceRequirements{}, false
}

func inUnits(q, divisor resource.Quantity, milli bool) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	a, b := float64(q.Value()), float64(divisor.Value())
	if milli {
		a, b = float64(q.MilliValue()), float64(divisor.MilliValue())
	}
	return strconv.FormatInt(int64(math.Ceil(a/b)), 10)
}

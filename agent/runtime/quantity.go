package runtime

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// value is q in the unit in which name is counted: thousandths of a CPU, else bytes.
func value(name v1.ResourceName, q resource.Quantity) int64 {
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// pageSize is the size of the pages of resource "hugepages-2Mi", as cgroups write it: "2MB".
func pageSize(name v1.ResourceName) (string, bool) {
	size, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
	if !ok {
		return "", false
	}
	q, err := resource.ParseQuantity(size)
	if err != nil {
		return "", false
	}
	n, units := q.Value(), []string{"B", "KB", "MB", "GB", "TB"}
	for len(units) > 1 && n >= 1024 && n%1024 == 0 {
		n, units = n/1024, units[1:]
	}
	return resource.NewQuantity(n, resource.DecimalSI).String() + units[0], true
}

package wire

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func quantities(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func TestAllocatable(t *testing.T) {
	have := quantities("cpu", "4", "memory", "8Gi", "ephemeral-storage", "100Gi", "pods", "10", "hugepages-2Mi", "1Gi")
	got, err := allocatable(have, quantities("cpu", "500m", "memory", "1Gi", "pid", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	want := quantities("cpu", "3500m", "memory", "6Gi", "ephemeral-storage", "100Gi", "pods", "10", "hugepages-2Mi", "1Gi")
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	for name, q := range want {
		if g := got[name]; g.Cmp(q) != 0 {
			t.Errorf("%s: got %s, want %s", name, g.String(), q.String())
		}
	}
	if q := have[v1.ResourceMemory]; q.String() != "8Gi" {
		t.Errorf("the capacity was changed to %s", q.String())
	}
	if _, err := allocatable(have, quantities("cpu", "5")); err == nil || !strings.Contains(err.Error(), "keep 5 of cpu from pods, but the node has only 4") {
		t.Errorf("more reserved than there is: %v", err)
	}
}

func TestCapacity(t *testing.T) {
	r, err := capacity(t.TempDir(), 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, v1.ResourcePods} {
		if q := r[name]; q.Sign() <= 0 {
			t.Errorf("%s: %s", name, q.String())
		}
	}
	if q := r[v1.ResourcePods]; q.Value() != 7 {
		t.Errorf("pods: %s", q.String())
	}
	if _, err := capacity("/no/such/directory", 7); err == nil {
		t.Error("a root directory that is not there has a size")
	}
}

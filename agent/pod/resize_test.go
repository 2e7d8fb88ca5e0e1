package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func list(cpu, memory string) v1.ResourceList {
	l := v1.ResourceList{}
	if cpu != "" {
		l[v1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[v1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func asking(requests, limits v1.ResourceList) v1.ResourceRequirements {
	return v1.ResourceRequirements{Requests: requests, Limits: limits}
}

func specOf(all ...v1.ResourceRequirements) *v1.PodSpec {
	spec := &v1.PodSpec{}
	for i, r := range all {
		spec.Containers = append(spec.Containers, v1.Container{Name: string(rune('a' + i)), Resources: r})
	}
	return spec
}

func TestQOSClass(t *testing.T) {
	podLevel := func(r v1.ResourceRequirements, all ...v1.ResourceRequirements) *v1.PodSpec {
		spec := specOf(all...)
		spec.Resources = &r
		return spec
	}
	withInit := specOf(asking(list("1", "1Gi"), list("1", "1Gi")))
	withInit.InitContainers = []v1.Container{{Name: "i"}}
	zero := specOf(asking(v1.ResourceList{v1.ResourceCPU: resource.MustParse("0"), v1.ResourceMemory: resource.MustParse("0")}, nil))
	for what, tt := range map[string]struct {
		spec *v1.PodSpec
		want v1.PodQOSClass
	}{
		"nothing":                   {specOf(asking(nil, nil)), v1.PodQOSBestEffort},
		"zeros ask for nothing":     {zero, v1.PodQOSBestEffort},
		"hugepages alone":           {specOf(asking(v1.ResourceList{"hugepages-2Mi": resource.MustParse("2Mi")}, nil)), v1.PodQOSBestEffort},
		"a request":                 {specOf(asking(list("1", ""), nil)), v1.PodQOSBurstable},
		"limits":                    {specOf(asking(nil, list("1", "1Gi"))), v1.PodQOSGuaranteed},
		"cpu alone":                 {specOf(asking(list("1", ""), list("1", ""))), v1.PodQOSBurstable},
		"equal":                     {specOf(asking(list("1", "1Gi"), list("1000m", "1024Mi"))), v1.PodQOSGuaranteed},
		"unequal":                   {specOf(asking(list("500m", "1Gi"), list("1", "1Gi"))), v1.PodQOSBurstable},
		"one of two":                {specOf(asking(list("1", "1Gi"), list("1", "1Gi")), asking(nil, nil)), v1.PodQOSBurstable},
		"an init container":         {withInit, v1.PodQOSBurstable},
		"a request of zero":         {specOf(asking(list("0", "1Gi"), list("1", "1Gi"))), v1.PodQOSBurstable},
		"pod level equal":           {podLevel(asking(list("1", "1Gi"), list("1", "1Gi")), asking(nil, nil)), v1.PodQOSGuaranteed},
		"pod level, cpu alone":      {podLevel(asking(list("1", ""), list("1", "")), asking(list("1", "1Gi"), list("1", "1Gi"))), v1.PodQOSBurstable},
		"pod level, empty":          {podLevel(asking(nil, nil), asking(list("1", ""), nil)), v1.PodQOSBurstable},
		"pod level hides the parts": {podLevel(asking(list("1", "1Gi"), list("2", "2Gi")), asking(list("1", "1Gi"), list("1", "1Gi"))), v1.PodQOSBurstable},
	} {
		if got := ComputeQOSClass(tt.spec); got != tt.want {
			t.Errorf("%s: %s, want %s", what, got, tt.want)
		}
	}
	named := &v1.Pod{Status: v1.PodStatus{QOSClass: v1.PodQOSGuaranteed}}
	if got := QOSClass(named); got != v1.PodQOSGuaranteed {
		t.Errorf("the class of a pod's status became %s", got)
	}
}

func TestResourcesInto(t *testing.T) {
	p := &v1.Pod{Spec: *specOf(asking(list("1", ""), nil), asking(nil, nil))}
	p.Generation = 1
	r := ResourcesOf(p)
	if !r.Same(ResourcesOf(p.DeepCopy())) {
		t.Error("a pod differs from its copy")
	}
	next := Resources{Generation: 2, Containers: map[ContainerName]v1.ResourceRequirements{"b": asking(list("", "1Mi"), nil), "z": {}}}
	q := next.Into(p)
	if q.Generation != 2 || q.Spec.Containers[0].Resources.Requests.Cpu().String() != "1" || q.Spec.Containers[1].Resources.Requests.Memory().String() != "1Mi" {
		t.Errorf("%+v", q.Spec)
	}
	if len(p.Spec.Containers[1].Resources.Requests) != 0 || p.Generation != 1 {
		t.Error("the original was changed")
	}
	if r.Same(ResourcesOf(q)) {
		t.Error("a resized pod is taken for the original")
	}
}

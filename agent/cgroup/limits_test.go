package cgroup

import (
	"reflect"
	"testing"
	"time"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
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

func container(requests, limits v1.ResourceList) v1.Container {
	return v1.Container{Name: "c", Resources: v1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func podWith(uid string, containers ...v1.Container) *v1.Pod {
	for i := range containers {
		containers[i].Name = string(rune('a' + i))
	}
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", UID: types.UID(uid)}, Spec: v1.PodSpec{Containers: containers}}
}

func TestFormulas(t *testing.T) {
	for milli, want := range map[int64]uint64{0: 2, 1: 2, 2: 2, 100: 102, 1000: 1024, 1500: 1536, 256000: 262144, 999999: 262144} {
		if got := MilliCPUToShares(milli); got != want {
			t.Errorf("MilliCPUToShares(%d) = %d, want %d", milli, got, want)
		}
	}
	for milli, want := range map[int64]int64{0: 0, 1: 1000, 5: 1000, 10: 1000, 100: 10000, 1500: 150000} {
		if got := MilliCPUToQuota(milli, 100*time.Millisecond); got != want {
			t.Errorf("MilliCPUToQuota(%d) = %d, want %d", milli, got, want)
		}
	}
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 102: 4, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := SharesToWeight(shares); got != want {
			t.Errorf("SharesToWeight(%d) = %d, want %d", shares, got, want)
		}
	}
	for _, milli := range []int64{2, 100, 250, 1000, 4000} {
		if got := sharesToMilli(MilliCPUToShares(milli)); got < milli-2 || got > milli+1 {
			t.Errorf("milli-CPU %d reads back from shares as %d", milli, got)
		}
		if got := weightToMilli(SharesToWeight(MilliCPUToShares(milli))); got < milli-30 || got > milli+30 {
			t.Errorf("milli-CPU %d reads back from a weight as %d", milli, got)
		}
	}
}

func TestClassAndLimits(t *testing.T) {
	const gi = 1 << 30
	overhead := podWith("o", container(list("1", "1Gi"), list("1", "1Gi")))
	overhead.Spec.Overhead = list("100m", "1Gi")
	podLevel := podWith("l", container(nil, nil))
	podLevel.Spec.Resources = &v1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("2", "2Gi")}
	immutable := podWith("i", container(nil, nil))
	immutable.Status.QOSClass = v1.PodQOSGuaranteed
	tests := []struct {
		what  string
		pod   *v1.Pod
		class v1.PodQOSClass
		want  Limits
	}{
		{"nothing asked", podWith("1", container(nil, nil)), v1.PodQOSBestEffort, Limits{CPUShares: 2}},
		{"all limited", podWith("2", container(list("1", "1Gi"), list("1", "1Gi"))), v1.PodQOSGuaranteed,
			Limits{CPUShares: 1024, CPUQuota: 100000, CPUPeriod: 100000, Memory: gi}},
		{"limits alone", podWith("3", container(nil, list("1", "1Gi"))), v1.PodQOSGuaranteed,
			Limits{CPUShares: 2, CPUQuota: 100000, CPUPeriod: 100000, Memory: gi}},
		{"two containers, one unlimited", podWith("4", container(list("500m", ""), list("1", "1Gi")), container(list("500m", ""), nil)), v1.PodQOSBurstable,
			Limits{CPUShares: 1024}},
		{"burstable, memory limited everywhere", podWith("5", container(list("500m", ""), list("", "1Gi"))), v1.PodQOSBurstable,
			Limits{CPUShares: 512, Memory: gi}},
		{"overhead", overhead, v1.PodQOSGuaranteed, Limits{CPUShares: 1126, CPUQuota: 110000, CPUPeriod: 100000, Memory: 2 * gi}},
		{"resources of the pod", podLevel, v1.PodQOSBurstable, Limits{CPUShares: 1024, CPUQuota: 200000, CPUPeriod: 100000, Memory: 2 * gi}},
		{"class never changes", immutable, v1.PodQOSGuaranteed, Limits{CPUShares: 2}},
	}
	for _, tt := range tests {
		if got := pod.QOSClass(tt.pod); got != tt.class {
			t.Errorf("%s: class %s, want %s", tt.what, got, tt.class)
		}
		if got := (Config{}).PodLimits(tt.pod); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: limits %+v, want %+v", tt.what, got, tt.want)
		}
	}
	p := podWith("6", container(list("1", "1Gi"), list("1", "1Gi")))
	if got := (Config{NoCPUQuota: true, PodPidsLimit: 7, CPUPeriod: 50 * time.Millisecond}).PodLimits(p); got.CPUQuota != -1 || got.Pids != 7 {
		t.Errorf("without quota: %+v", got)
	}
}

func TestNames(t *testing.T) {
	tests := []struct {
		root       string
		class      v1.PodQOSClass
		uid        string
		fs, system string
	}{
		{"", v1.PodQOSGuaranteed, "12-34", "/kubepods/pod12-34", "/kubepods.slice/kubepods-pod12_34.slice"},
		{"/", v1.PodQOSBurstable, "12-34", "/kubepods/burstable/pod12-34", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice"},
		{"/a/b-c", v1.PodQOSBestEffort, "1", "/a/b-c/kubepods/besteffort/pod1", "/a.slice/a-b_c.slice/a-b_c-kubepods.slice/a-b_c-kubepods-besteffort.slice/a-b_c-kubepods-besteffort-pod1.slice"},
		{"../x", v1.PodQOSGuaranteed, "1", "/x/kubepods/pod1", "/x.slice/x-kubepods.slice/x-kubepods-pod1.slice"},
	}
	for _, tt := range tests {
		for d, want := range map[Driver]string{Cgroupfs: tt.fs, Systemd: tt.system} {
			tree := &Tree{root: rootName(tt.root), cfg: Config{Driver: d}}
			p := podWith(tt.uid)
			p.Status.QOSClass = tt.class
			if got := tree.Parent(p); got != want {
				t.Errorf("%q %s: %s, want %s", tt.root, d, got, want)
			}
			n := tree.podName(tt.class, "12-34")
			if uid, ok := podOf(tree.qosName(tt.class), n.entry(d), d); !ok || uid != "12-34" {
				t.Errorf("%s reads back as %q, %v", n.entry(d), uid, ok)
			}
		}
	}
	if uid, ok := podOf(name{kubepods}, "burstable", Cgroupfs); ok {
		t.Errorf("burstable is not the group of pod %q", uid)
	}
	if uid, ok := podOf(name{kubepods}, "kubepods-burstable.slice", Systemd); ok {
		t.Errorf("kubepods-burstable.slice is not the group of pod %q", uid)
	}
}

package ocispec

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSwapOfV2IsSaidOnce(t *testing.T) {
	host := Host{CgroupV2: true, SwapAccounting: true}
	for swap, want := range map[string]int64{"0": 100, "50": 150, "max": 100, "": 100} {
		r := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100, Unified: map[string]string{"memory.oom.group": "1"}}
		if swap != "" {
			r.Unified[swapMax] = swap
		}
		got, err := Resources(r, host)
		if err != nil || *got.Spec.Memory.Swap != want {
			t.Errorf("swap.max %q: memory and swap %d (%v), want %d", swap, *got.Spec.Memory.Swap, err, want)
		}
		if _, left := got.Spec.Unified[swapMax]; left != (swap == "max") || got.Spec.Unified["memory.oom.group"] != "1" {
			t.Errorf("swap.max %q: unified %v", swap, got.Spec.Unified)
		}
	}
	r := &runtimeapi.LinuxContainerResources{Unified: map[string]string{swapMax: "0"}} // without a limit on memory only v2's own word is left
	if got, err := Resources(r, host); err != nil || got.Spec.Memory != nil || got.Spec.Unified[swapMax] != "0" {
		t.Errorf("%+v, %v", got.Spec, err)
	}
}

package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berthd/berth/agent/admission"
)

// node checks what the node says of itself.
func (k *checker) node() {
	c := k.c
	for _, name := range slices.Sorted(maps.Keys(c.NodeLabels)) {
		value := c.NodeLabels[name]
		field := "nodeLabels[" + clip(name, 60) + "]"
		for _, why := range validation.IsQualifiedName(name) {
			k.blame(field, "%q cannot be a label's name: %s", clip(name, 60), why)
		}
		for _, why := range validation.IsValidLabelValue(value) {
			k.blame(field, "%q cannot be a label's value: %s", clip(value, 60), why)
		}
	}
	for i, t := range c.RegisterWithTaints {
		field := fmt.Sprintf("registerWithTaints[%d]", i)
		for _, why := range validation.IsQualifiedName(t.Key) {
			k.blame(field, "%q cannot be a taint's key: %s", clip(t.Key, 60), why)
		}
		for _, why := range validation.IsValidLabelValue(t.Value) {
			k.blame(field, "%q cannot be a taint's value: %s", clip(t.Value, 60), why)
		}
		if !slices.Contains([]v1.TaintEffect{v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute}, v1.TaintEffect(t.Effect)) {
			k.blame(field, "expected the effect NoSchedule, PreferNoSchedule or NoExecute, got %q", clip(t.Effect, 60))
		}
	}
	k.reserved("systemReserved", c.SystemReserved)
	k.reserved("kubeReserved", c.KubeReserved)
}

// reservable are the resources that may be kept from pods.
var reservable = []string{"cpu", "memory", "ephemeral-storage", "pid"}

func (k *checker) reserved(list string, of map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		value := of[name]
		field := list + "[" + clip(name, 60) + "]"
		if !slices.Contains(reservable, name) {
			k.blame(field, "expected cpu, memory, ephemeral-storage or pid, got %q", clip(name, 60))
			continue
		}
		if q, err := resource.ParseQuantity(clip(value, 60)); err != nil || q.Sign() < 0 {
			k.blame(field, `expected an amount such as "500m" or "1Gi", got %q`, clip(value, 60))
		}
	}
}

// pods checks what pods get on this node.
func (k *checker) pods() {
	c := k.c
	for i, a := range c.ClusterDNS {
		if _, err := netip.ParseAddr(a); err != nil {
			k.blame(fmt.Sprintf("clusterDNS[%d]", i), "expected the IP address of a name server, got %q", clip(a, 60))
		}
	}
	if d := c.ClusterDomain; d != "" {
		for _, why := range validation.IsDNS1123Subdomain(d) {
			k.blame("clusterDomain", "%q cannot be a domain: %s", clip(d, 60), why)
		}
	}
	k.optional("resolvConf", c.ResolvConf)
	if n := c.PodPidsLimit; n < 1 && n != -1 {
		k.blame("podPidsLimit", "expected a number from 1 up, or -1 for no limit, got %d", n)
	}
	if p := c.CPUCFSQuotaPeriod; p < time.Millisecond || p > time.Second {
		k.blame("cpuCFSQuotaPeriod", "expected a duration from 1ms to 1s, got %s", p)
	}
	if b := c.MemorySwap.SwapBehavior; b != "" && b != noSwap && b != limitedSwap {
		k.blame("memorySwap.swapBehavior", "expected NoSwap, LimitedSwap or nothing (NoSwap), got %q", clip(b, 60))
	}
	if n := c.UserNamespaces.IDsPerPod; n < 1<<16 || n%(1<<16) != 0 || n > 1<<31 {
		k.blame("userNamespaces.idsPerPod", "expected a multiple of 65536, at most 2147483648, got %d", n)
	}
	for i, pattern := range c.AllowedUnsafeSysctls {
		if err := admission.CheckSysctlPattern(pattern); err != nil {
			k.blame(fmt.Sprintf("allowedUnsafeSysctls[%d]", i), "%q: %v", clip(pattern, 100), err)
		}
	}
}

// The values of memorySwap.swapBehavior.
const noSwap, limitedSwap = "NoSwap", "LimitedSwap"

package admission

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// BenchmarkDecide is what one more pod costs on a node of 1000.
func BenchmarkDecide(b *testing.B) {
	node := Node{Name: "n", Allocatable: quantities("pods", "2000", "cpu", "2000", "memory", "4Ti")}
	var others []pod.Snapshot
	for i := range 1000 {
		others = append(others, held(fmt.Sprint(i), v1.PodQOSBurstable, asks("cpu", "100m", "memory", "64Mi")))
	}
	d := pod.Desired{Source: pod.SourceFile, Pod: podOf("new", asks("cpu", "1", "memory", "1Gi"))}
	for b.Loop() {
		if v := Decide(d, others, node); v.Rejection != nil {
			b.Fatal(v.Rejection)
		}
	}
}

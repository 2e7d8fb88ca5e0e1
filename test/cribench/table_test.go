package main

import (
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Quantiles are by nearest rank, and the table compares with the last side.
func TestTable(t *testing.T) {
	lives := func(each time.Duration) (all []timing) {
		for n := range 100 {
			var l timing
			l[runSandbox] = each * time.Duration(100-n)
			l[whole] = l[runSandbox]
			all = append(all, l)
		}
		return all
	}
	for p, want := range map[float64]float64{0.5: 50, 0.99: 99, 1: 100, 0: 1} {
		if got := quantile(lives(time.Millisecond), whole, p); got != want {
			t.Errorf("quantile %v is %v, not %v", p, got, want)
		}
	}
	text := table([]Result{
		{Side: "ours", Mode: runtimeapi.NamespaceMode_POD, Lives: lives(time.Millisecond), Throughput: 9, PerPodMiB: 0.5, BaseMiB: 10},
		{Side: "peer", Mode: runtimeapi.NamespaceMode_POD, Lives: lives(4 * time.Millisecond), Throughput: 3, PerPodMiB: 6, BaseMiB: 20},
	}, []critestFigures{{"ours", []critestRow{{"CreatePod", 1}}}, {"peer", []critestRow{{"CreatePod", 5}}}})
	for _, want := range []string{
		"PID mode POD", "| **whole life, p99** (ms) | 99 | 396 | 4.0x |", "lives a second | 9 | 3 | 3.0x |", "(MiB, PSS) | 0.5 | 6 | 12.0x |", "| CreatePod | 1.0 | 5.0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %q:\n%s", want, text)
		}
	}
}

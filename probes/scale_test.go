package probes

import (
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// BenchmarkSetUnchanged is what a pod's worker pays for telling the same again.
func BenchmarkSetUnchanged(b *testing.B) {
	p := New(Config{Logger: slog.New(slog.DiscardHandler)})
	probe := &v1.Probe{PeriodSeconds: 10, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{}}}
	targets := []Target{
		{ContainerID: "c", Kind: Liveness, Probe: probe, StartedAt: time.Now()},
		{ContainerID: "c", Kind: Readiness, Probe: probe, StartedAt: time.Now()},
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Set("u", targets)
	}
}

// BenchmarkSchedule is the cost of one probe without what it asks: due, worker,
// verdict, back into a queue of a thousand.
func BenchmarkSchedule(b *testing.B) {
	p := New(Config{
		Exec:   func(context.Context, string, []string, time.Duration) (int, []byte, error) { return 0, nil, nil },
		Report: func(string, string, Kind, bool, string) {},
		Logger: slog.New(slog.DiscardHandler),
	})
	for i := range 1000 {
		p.Set(fmt.Sprint(i), []Target{{ContainerID: "c", Kind: Readiness, StartedAt: time.Now(),
			Probe: &v1.Probe{PeriodSeconds: 1, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{}}}}})
	}
	b.ReportAllocs()
	for b.Loop() {
		p.mu.Lock()
		one := heap.Pop(&p.queue).(*probe)
		one.busy = true
		p.mu.Unlock()
		p.makeOne(b.Context(), one)
	}
}

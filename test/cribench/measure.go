package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Result is what one side needed in one PID mode.
type Result struct {
	Side  string
	Mode  runtimeapi.NamespaceMode
	Lives []timing // one at a time

	Throughput float64  // lives a second with many in flight, the median round
	Flight     []timing // lives of all those rounds

	BaseMiB, PerPodMiB float64 // PSS of the side's own processes: without pods, and more of it per pod
}

// measure walks all measurements of one PID mode, alternating between the sides.
func measure(ctx context.Context, sides []*side, mode runtimeapi.NamespaceMode) ([]Result, error) {
	results := make([]Result, len(sides))
	for i, s := range sides {
		results[i] = Result{Side: s.name, Mode: mode}
		for k := range 5 {
			if _, err := live(ctx, s, fmt.Sprintf("warm-%s-%d", mode, k), mode); err != nil {
				return nil, err
			}
		}
	}
	for i, s := range sides {
		fmt.Fprintf(os.Stderr, "%s, PID mode %s: memory of %d pods\n", s.name, mode, *pods)
		if err := results[i].memory(ctx, s); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(os.Stderr, "PID mode %s: %d lives of each side, one at a time\n", mode, *lives)
	for n := range *lives {
		for i, s := range sides {
			t, err := live(ctx, s, fmt.Sprintf("one-%s-%d", mode, n), mode)
			if err != nil {
				return nil, err
			}
			results[i].Lives = append(results[i].Lives, t)
		}
	}
	rates := make([][]float64, len(sides))
	for r := range *rounds {
		for i, s := range sides {
			fmt.Fprintf(os.Stderr, "%s, PID mode %s: %d lives, %d at a time\n", s.name, mode, *batch, *flight)
			rate, all, err := together(ctx, s, r, mode)
			if err != nil {
				return nil, err
			}
			rates[i] = append(rates[i], rate)
			results[i].Flight = append(results[i].Flight, all...)
		}
	}
	for i := range sides {
		slices.Sort(rates[i])
		if len(rates[i]) > 0 {
			results[i].Throughput = rates[i][len(rates[i])/2]
		}
	}
	return results, nil
}

// together runs one round of lives, *flight of them at any time, and returns
// lives a second.
func together(ctx context.Context, s *side, round int, mode runtimeapi.NamespaceMode) (float64, []timing, error) {
	all := make([]timing, *batch)
	t0 := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(*flight)
	for n := range *batch {
		g.Go(func() error {
			t, err := live(ctx, s, fmt.Sprintf("many-%s-%d-%d", mode, round, n), mode)
			all[n] = t
			return err
		})
	}
	err := g.Wait()
	return float64(*batch) / time.Since(t0).Seconds(), all, err
}

// memory measures what pods cost that run and do nothing.
func (r *Result) memory(ctx context.Context, s *side) error {
	time.Sleep(settle)
	r.BaseMiB = pss(s)
	running := make([]*pod, *pods)
	var ignored timing
	for n := range running {
		running[n] = newPod(s, fmt.Sprintf("idle-%s-%d", r.Mode, n), r.Mode)
		if err := running[n].begin(ctx, &ignored); err != nil {
			return fmt.Errorf("%s: %w\n%s", s.name, err, s.logTail())
		}
	}
	time.Sleep(settle)
	if *pods > 0 {
		r.PerPodMiB = (pss(s) - r.BaseMiB) / float64(*pods)
	}
	for _, p := range running {
		if err := p.end(ctx, &ignored); err != nil {
			return fmt.Errorf("%s: %w\n%s", s.name, err, s.logTail())
		}
	}
	return nil
}

// quantile is the p-th quantile of a phase in milliseconds, by nearest rank.
func quantile(all []timing, ph phase, p float64) float64 {
	if len(all) == 0 {
		return math.NaN()
	}
	var x []time.Duration
	for _, t := range all {
		x = append(x, t[ph])
	}
	slices.Sort(x)
	rank := int(math.Ceil(p*float64(len(x)))) - 1
	return x[max(rank, 0)].Seconds() * 1000
}

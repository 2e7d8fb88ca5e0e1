package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// benchmarkParams are small: the figures are to stand beside those of the
// project's own benchmark, which takes many more samples.
const benchmarkParams = `containersNumber: 30
containersNumberParallel: 1
containerBenchmarkTimeoutSeconds: 120
podsNumber: 30
podsNumberParallel: 1
podBenchmarkTimeoutSeconds: 120
imagesNumber: 10
imagesNumberParallel: 1
imageBenchmarkTimeoutSeconds: 120
podContainerStartBenchmarkTimeoutSeconds: 120
`

// samples are how long each call took, in nanoseconds, by benchmark and call:
// "pod CreatePod".
type samples map[string][]int64

// readSamples reads what critest's benchmarks left in dir.
func readSamples(dir string) (samples, error) {
	paths, err := filepath.Glob(dir + "/*_benchmark_data.json")
	if err != nil {
		return nil, err
	}
	all := samples{}
	for _, p := range paths {
		body, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		var set struct {
			OperationsNames []string
			Datapoints      []struct{ OperationsDurationsNs []int64 }
		}
		if err := json.Unmarshal(body, &set); err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Base(p), err)
		}
		what := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(p), "_benchmark_data.json"), "_", " ")
		for _, d := range set.Datapoints {
			for i, ns := range d.OperationsDurationsNs {
				if i < len(set.OperationsNames) {
					name := what + ": " + set.OperationsNames[i]
					all[name] = append(all[name], ns)
				}
			}
		}
	}
	return all, nil
}

// quantile is the q-th of all, by nearest rank.
func quantile(all []int64, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	if len(sorted) == 0 {
		return 0
	}
	return time.Duration(sorted[min(len(sorted)-1, int(q*float64(len(sorted))))])
}

// benchmark runs critest's benchmarks of each runtime and writes the page.
func benchmark(ctx context.Context, o options) error {
	st, err := prepare(o)
	if err != nil {
		return err
	}
	defer st.close()
	names := strings.Split(o.runtimes, ",")
	got := map[string]samples{}
	for _, r := range names {
		result, err := st.round(ctx, r, "benchmark")
		if err != nil {
			return fmt.Errorf("benchmark of %s: %w", r, err)
		}
		if n := result.count("failed"); n > 0 {
			return fmt.Errorf("benchmark of %s: %s", r, strings.Join(result.failed(), "; "))
		}
		got[r] = result.Samples
		fmt.Printf("%s: %d kinds of calls measured in %d s\n", r, len(result.Samples), result.Seconds)
	}
	return os.WriteFile(filepath.Join(o.results, "critest-benchmark.md"), []byte(benchmarkPage(o.commit, names, got)), 0o644)
}

func benchmarkPage(commit string, names []string, got map[string]samples) string {
	var b strings.Builder
	load, _ := os.ReadFile("/proc/loadavg") // for the reader; nothing depends on it
	fmt.Fprintf(&b, "# critest -benchmark\n\n`sh test/critest/run.sh benchmark`, commit %s, %s, one after the other on one machine; load at the end: %s\n"+
		"Milliseconds, p50 / p99 (by nearest rank; of 30 samples the p99 is the largest).\n\n| call |", commit, time.Now().UTC().Format(time.DateOnly), strings.TrimSpace(string(load)))
	calls := map[string]bool{}
	for _, r := range names {
		fmt.Fprintf(&b, " %s |", r)
		for c := range got[r] {
			calls[c] = true
		}
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(names)) + "\n")
	for _, c := range sortedKeys(calls) {
		fmt.Fprintf(&b, "| %s |", c)
		for _, r := range names {
			all := got[r][c]
			fmt.Fprintf(&b, " %.1f / %.1f |", quantile(all, 0.5).Seconds()*1000, quantile(all, 0.99).Seconds()*1000)
		}
		b.WriteString("\n")
	}
	return b.String()
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// critestFigures are the medians, in milliseconds, of what `critest -benchmark`
// measured on one side.
type critestFigures struct {
	side string
	rows []critestRow
}

type critestRow struct {
	operation string
	p50       float64
}

const critestParameters = `podsNumber: 50
podsNumberParallel: 1
containersNumber: 50
containersNumberParallel: 1
`

// critestBenchmark runs the pod and container benchmarks of critest.
func critestBenchmark(ctx context.Context, s *side, critest, work string) (critestFigures, error) {
	f := critestFigures{side: s.name}
	dir := filepath.Join(work, "critest-"+filepath.Base(s.home))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return f, err
	}
	parameters := filepath.Join(work, "critest-parameters.yaml")
	if err := os.WriteFile(parameters, []byte(critestParameters), 0o644); err != nil {
		return f, err
	}
	images := filepath.Join(work, "critest-images.yaml")
	if err := os.WriteFile(images, fmt.Appendf(nil, "defaultTestContainerImage: %[1]s\nwebServerTestImage: %[1]s\n", busyboxName), 0o644); err != nil {
		return f, err
	}
	cmd := exec.CommandContext(ctx, critest, "-benchmark", "-runtime-endpoint", "unix://"+s.socket(), "-image-endpoint", "unix://"+s.socket(),
		"-test-images-file", images, "-benchmarking-params-file", parameters, "-benchmarking-output-dir", dir,
		"-ginkgo.focus", "lifecycle of PodSandbox|operations on Container", "-ginkgo.no-color")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return f, fmt.Errorf("%s: critest -benchmark: %w\n%s", s.name, err, msg)
	}
	for _, file := range []string{"pod_benchmark_data.json", "container_benchmark_data.json"} {
		rows, err := readCritest(filepath.Join(dir, file))
		if err != nil {
			return f, err
		}
		f.rows = append(f.rows, rows...)
	}
	return f, nil
}

// readCritest reads one of critest's result files.
func readCritest(path string) ([]critestRow, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var data struct {
		OperationsNames []string
		Datapoints      []struct{ OperationsDurationsNs []int64 }
	}
	if err := json.Unmarshal(body, &data); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var rows []critestRow
	for i, name := range data.OperationsNames {
		var x []int64
		for _, p := range data.Datapoints {
			if i < len(p.OperationsDurationsNs) {
				x = append(x, p.OperationsDurationsNs[i])
			}
		}
		if len(x) == 0 {
			return nil, fmt.Errorf("%s has no figures of %s", path, name)
		}
		slices.Sort(x)
		rows = append(rows, critestRow{name, float64(x[len(x)/2]) / 1e6})
	}
	return rows, nil
}

// critestTable is the Markdown of all sides' figures.
func critestTable(all []critestFigures) string {
	if len(all) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n## critest -benchmark\nMedian of 50, one at a time, milliseconds.\n\n| operation |")
	for _, f := range all {
		fmt.Fprintf(&b, " %s |", f.side)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(all)) + "\n")
	for i, row := range all[0].rows {
		fmt.Fprintf(&b, "| %s |", row.operation)
		for _, f := range all {
			fmt.Fprintf(&b, " %.1f |", f.rows[i].p50)
		}
		b.WriteString("\n")
	}
	return b.String()
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// setting is what one round is run with.
type setting struct {
	Runtime string // one of peers
	Mode    string // serial, parallel, websocket, benchmark
	Berth   string // path of the program
	Peer    string // directory of the peers' programs
	Critest string // path of our copy
	Images  string // directory of the registry's storage
	Dir     string // the round's own; short, since sockets lie in it
	Focus   string // run only the specs that match
}

// outcome is what a round found.
type outcome struct {
	Specs   map[string]verdict
	Seconds int
	Left    []string // what the round left behind, and was cleaned up
	About   string   // versions
	Samples samples  `json:",omitempty"` // of a benchmark
}

// verdict is that of one spec.
type verdict struct {
	State  string // passed, failed, skipped
	Reason string `json:",omitempty"` // of a failure or a skip
}

// count is how many specs ended in state.
func (o outcome) count(state string) int {
	n := 0
	for _, v := range o.Specs {
		if v.State == state {
			n++
		}
	}
	return n
}

// failed are the names of the specs that failed.
func (o outcome) failed() []string {
	var all []string
	for name, v := range o.Specs {
		if v.State == "failed" {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// inside runs one round in the network and IPC namespaces that this process was
// started in, and leaves the outcome in s.Dir/outcome.json.
func inside(ctx context.Context, s setting) (err error) {
	if err := adopt(); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set the loopback interface up: %w: %s", err, out)
	}
	registry, err := startRegistry(s.Images, mirror)
	if err != nil {
		return err
	}
	defer registry.end()
	node, err := startNode(s, s.Dir)
	if err != nil {
		killOrphans()
		unmountBelow(s.Dir)
		return err
	}
	began := time.Now()
	runErr := critest(ctx, s)
	o := outcome{About: about(s), Seconds: int(time.Since(began).Seconds())}
	report, err := readReport(s.Dir)
	var exit *exec.ExitError
	if err == nil && errors.As(runErr, &exit) {
		runErr = nil // which specs failed is in the report
	}
	runErr = errors.Join(runErr, err)
	o.Specs = report
	if o.Samples, err = readSamples(s.Dir); err != nil {
		runErr = errors.Join(runErr, err)
	}
	found, err := sweep(filepath.Join(s.Dir, "cri.sock"))
	if err != nil {
		runErr = errors.Join(runErr, fmt.Errorf("remove what is left: %w", err))
	}
	for _, f := range found {
		o.Left = append(o.Left, "pod "+f)
	}
	node.end()
	time.Sleep(200 * time.Millisecond) // what ends with the runtime may take a moment
	for _, p := range orphans() {
		o.Left = append(o.Left, "process "+p)
	}
	killOrphans()
	unmountBelow(s.Dir)
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "outcome.json"), body, 0o644); err != nil {
		return err
	}
	return runErr
}

// patience is how long critest may take.
const patience = 40 * time.Minute

// critest runs critest against the runtime in s.Dir.
func critest(ctx context.Context, s setting) error {
	socket := "unix://" + s.Dir + "/cri.sock"
	args := []string{"-runtime-endpoint", socket, "-image-endpoint", socket, "-config", filepath.Join(s.Dir, "no-crictl.yaml"),
		"-ginkgo.no-color"}
	tmp := filepath.Join(s.Dir, "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	switch s.Mode {
	case "parallel":
		args = append(args, "-parallel", "4", "-ginkgo.json-report", "report.json")
	case "websocket":
		args = append(args, "-websocket-exec", "-websocket-attach", "-websocket-portforward", "-ginkgo.focus", "Streaming", "-ginkgo.json-report", s.Dir+"/report.json")
	case "benchmark":
		params := filepath.Join(s.Dir, "params.yaml")
		if err := os.WriteFile(params, []byte(benchmarkParams), 0o644); err != nil {
			return err
		}
		args = append(args, "-benchmark", "-benchmarking-params-file", params, "-benchmarking-output-dir", s.Dir, "-ginkgo.json-report", s.Dir+"/report.json")
	default:
		args = append(args, "-ginkgo.json-report", s.Dir+"/report.json")
	}
	if s.Focus != "" {
		args = append(args, "-ginkgo.focus", s.Focus)
	}
	cmd := exec.Command(s.Critest, args...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "PATH="+s.Peer+":"+os.Getenv("PATH"))
	p, err := start(filepath.Join(s.Dir, "critest.log"), cmd)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.end()
		return fmt.Errorf("the round was cut short: %w", ctx.Err())
	case <-time.After(patience):
		p.end()
		return fmt.Errorf("critest did not end within %s", patience)
	}
}

// readReport reads the report that critest left in dir, or below its temporary
// directory (ginkgo puts it beside the program that it runs).
func readReport(dir string) (map[string]verdict, error) {
	paths, _ := filepath.Glob(dir + "/tmp/cri-test*/report.json")
	paths = append(paths, dir+"/report.json")
	var body []byte
	var err error
	for _, p := range paths {
		if body, err = os.ReadFile(p); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("critest left no report: %w", err)
	}
	return parseReport(body)
}

// specReport is the part of a spec in ginkgo's JSON report that is looked at.
type specReport struct {
	ContainerHierarchyTexts    []string
	LeafNodeType, LeafNodeText string
	State                      string
	Failure                    struct{ Message string }
}

// parseReport tells the verdict on every spec of a report. Specs that were not
// chosen are not in it; what fails outside a spec counts as one that failed.
func parseReport(body []byte) (map[string]verdict, error) {
	var reports []struct{ SpecReports []specReport }
	if err := json.Unmarshal(body, &reports); err != nil {
		return nil, fmt.Errorf("read critest's report: %w", err)
	}
	specs := map[string]verdict{}
	for _, r := range reports {
		for _, s := range r.SpecReports {
			name := strings.TrimPrefix(strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " "), "[k8s.io] ")
			if s.LeafNodeType != "It" {
				name = s.LeafNodeType
			}
			switch {
			case s.State == "passed" && s.LeafNodeType != "It", s.State == "pending", s.State == "skipped" && s.Failure.Message == "":
			case s.State == "passed", s.State == "skipped":
				specs[name] = verdict{s.State, oneLine(s.Failure.Message)}
			default:
				specs[name] = verdict{"failed", oneLine(s.Failure.Message)}
			}
		}
	}
	if len(specs) == 0 {
		return nil, errors.New("critest's report names no spec")
	}
	return specs, nil
}

// oneLine is short enough for a table.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 200 {
		s = s[:200] + " ..."
	}
	return s
}

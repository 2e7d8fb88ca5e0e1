// Command bench measures Berth and its peer (kubelet, containerd, runc) side by
// side on one machine: from the rename(2) of a pod's manifest to the first
// instruction of its container, the burst of many pods from one directory, what
// the node's own processes cost in proportional memory and in CPU when idle.
//
// Both sides run the same image and the same manifests from a manifest
// directory, without an API server. The container stamps CLOCK_MONOTONIC itself,
// so neither side's own reporting is trusted.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/berthd/berth/test/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Measured is what one side needed.
type Measured struct {
	Node          string  `json:"node"`
	StartP50ms    float64 `json:"start_p50_ms"`    // rename(2) to first instruction, one pod at a time
	StartP90ms    float64 `json:"start_p90_ms"`    // the same
	StartMinms    float64 `json:"start_min_ms"`    // the same
	BurstS        float64 `json:"burst_s"`         // all pods of one burst stamped
	BurstCPUms    float64 `json:"burst_cpu_ms"`    // CPU time of the node's own processes for each pod of the burst
	EmptyMiB      float64 `json:"empty_pss_mib"`   // PSS of the node's own processes, no pods
	PerPodMiB     float64 `json:"per_pod_pss_mib"` // more of it per pod
	IdleCores     float64 `json:"idle_cores"`      // CPU of the node's own processes with the burst's pods idle
	BurstPods     int     `json:"burst_pods"`
	SinglePods    int     `json:"single_pods"`
	TeardownS     float64 `json:"teardown_s"` // all of the burst's manifests removed until no workload is left
	FailedSingles int     `json:"failed_singles"`
}

var (
	pods    = flag.Int("pods", 110, "pods of the burst")
	singles = flag.Int("singles", 20, "pods started one at a time")
	idle    = flag.Duration("idle", 30*time.Second, "how long the idle node is watched")
	only    = flag.String("only", "", "berth or peer: measure that side alone")
	out     = flag.String("o", "", "also write the result as JSON to this file")
	berth   = flag.String("berth", "bin/berth", "the berth binary")
	peerBin = flag.String("peer", os.Getenv("HOME")+"/.cache/berth-peer/bin", "directory of the peer's binaries")
)

const imageName = "docker.io/library/berth-bench:1"

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	work, err := os.MkdirTemp("/tmp", "berth-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	archive, err := buildImages(work)
	if err != nil {
		return err
	}
	var nodes []node
	if *only != "peer" {
		path, err := filepath.Abs(*berth)
		if err != nil {
			return err
		}
		nodes = append(nodes, &berthNode{binary: path, work: filepath.Join(work, "b")})
	}
	if *only != "berth" {
		nodes = append(nodes, &peerNode{bin: *peerBin, work: filepath.Join(work, "p")})
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		for _, n := range nodes {
			n.down()
		}
		os.Exit(1)
	}()
	var all []Measured
	for _, n := range nodes {
		m, err := measure(n, work, archive)
		n.down()
		if err != nil {
			return fmt.Errorf("%s: %w", n.name(), err)
		}
		all = append(all, m)
	}
	print(all)
	if *out == "" {
		return nil
	}
	body, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*out, append(body, '\n'), 0o644)
}

// buildImages compiles the workload and writes one archive with the bench image
// and the peer's pause image.
func buildImages(work string) (string, error) {
	stamp := filepath.Join(work, "stamp")
	if msg, err := exec.Command("gcc", "-static", "-Os", "-s", "-o", stamp, "test/bench/stamp/main.c").CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the workload: %w: %s", err, msg)
	}
	body, err := os.ReadFile(stamp)
	if err != nil {
		return "", err
	}
	archive := filepath.Join(work, "bench.tar")
	f, err := os.Create(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	layer := image.Layer{"/stamp": {Body: body, Mode: 0o755}, "/pause": {Body: body, Mode: 0o755}, "/stamps": {Mode: os.ModeDir | 0o755}}
	return archive, image.WriteOCI(f, image.Spec{
		Names:  []string{imageName, "registry.k8s.io/pause:3.10.2"},
		Layers: []image.Layer{layer},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}},
	})
}

func measure(n node, work, archive string) (Measured, error) {
	m := Measured{Node: n.name(), BurstPods: *pods, SinglePods: *singles}
	stamps := filepath.Join(work, n.name()+"-stamps")
	if err := os.MkdirAll(stamps, 0o777); err != nil {
		return m, err
	}
	fmt.Fprintf(os.Stderr, "%s: starting\n", n.name())
	if err := n.up(archive); err != nil {
		return m, err
	}
	if _, err := startOne(n, stamps, "warm"); err != nil {
		return m, fmt.Errorf("the first pod did not start: %w", err)
	}
	if err := remove(n, "warm"); err != nil {
		return m, err
	}
	time.Sleep(5 * time.Second)
	m.EmptyMiB = cost(n).pssMiB

	fmt.Fprintf(os.Stderr, "%s: %d pods one at a time\n", n.name(), *singles)
	var took []float64
	for i := range *singles {
		name := fmt.Sprintf("single-%d", i)
		d, err := startOne(n, stamps, name)
		if err != nil {
			m.FailedSingles++
			fmt.Fprintf(os.Stderr, "%s: %v\n", n.name(), err)
		} else {
			took = append(took, d.Seconds()*1000)
		}
		if err := remove(n, name); err != nil {
			return m, err
		}
	}
	m.StartP50ms, m.StartP90ms, m.StartMinms = quantile(took, .5), quantile(took, .9), quantile(took, 0)

	fmt.Fprintf(os.Stderr, "%s: %d pods at once\n", n.name(), *pods)
	first, idleCPU := monotonic(), cost(n).cpu
	for i := range *pods {
		if err := n.place(fmt.Sprintf("burst-%d", i), stamps); err != nil {
			return m, err
		}
	}
	last := int64(0)
	for i := range *pods {
		at, err := stampOf(stamps, fmt.Sprintf("burst-%d", i), 5*time.Minute)
		if err != nil {
			return m, err
		}
		last = max(last, at)
	}
	m.BurstS = float64(last-first) / 1e9
	m.BurstCPUms = (cost(n).cpu - idleCPU).Seconds() * 1000 / float64(*pods)

	fmt.Fprintf(os.Stderr, "%s: idle for %v\n", n.name(), *idle)
	time.Sleep(15 * time.Second)
	before, t0 := cost(n), time.Now()
	time.Sleep(*idle)
	after := cost(n)
	m.IdleCores = (after.cpu - before.cpu).Seconds() / time.Since(t0).Seconds()
	m.PerPodMiB = (after.pssMiB - m.EmptyMiB) / float64(*pods)

	t0 = time.Now()
	for i := range *pods {
		if err := os.Remove(filepath.Join(n.manifests(), fmt.Sprintf("burst-%d.yaml", i))); err != nil {
			return m, err
		}
	}
	for time.Since(t0) < 5*time.Minute && workloads(n, "") > 0 {
		time.Sleep(20 * time.Millisecond)
	}
	m.TeardownS = time.Since(t0).Seconds()
	return m, nil
}

// startOne returns the time from the rename of the manifest to the container's first instruction.
func startOne(n node, stamps, name string) (time.Duration, error) {
	t0 := monotonic()
	if err := n.place(name, stamps); err != nil {
		return 0, err
	}
	at, err := stampOf(stamps, name, time.Minute)
	return time.Duration(at - t0), err
}

// remove takes a pod's manifest away and waits until its workload has ended.
func remove(n node, name string) error {
	if err := os.Remove(filepath.Join(n.manifests(), name+".yaml")); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if workloads(n, name) == 0 {
			time.Sleep(200 * time.Millisecond) // the network and the sandbox go after the container
			return nil
		}
	}
	return fmt.Errorf("pod %s did not end within a minute of its manifest's removal", name)
}

func stampOf(stamps, name string, within time.Duration) (int64, error) {
	path := filepath.Join(stamps, name)
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		body, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var at int64
		if _, err := fmt.Sscan(string(body), &at); err == nil {
			return at, nil
		}
	}
	return 0, fmt.Errorf("pod %s did not start within %v", name, within)
}

func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

func quantile(x []float64, p float64) float64 {
	if len(x) == 0 {
		return -1
	}
	sort.Float64s(x)
	return x[min(int(p*float64(len(x))), len(x)-1)]
}

func print(all []Measured) {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	row := func(label, format string, of func(Measured) any) {
		fmt.Fprint(w, label)
		for _, m := range all {
			fmt.Fprintf(w, "\t"+format, of(m))
		}
		if len(all) == 2 {
			a, b := number(of(all[0])), number(of(all[1]))
			if a > 0 {
				fmt.Fprintf(w, "\t%.1fx", b/a)
			} else {
				fmt.Fprint(w, "\t-")
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "\t")
	for _, m := range all {
		fmt.Fprintf(w, "%s\t", m.Node)
	}
	fmt.Fprintln(w, "peer/berth")
	row("one pod, manifest renamed to first instruction, p50 (ms)", "%.0f", func(m Measured) any { return m.StartP50ms })
	row("  p90 (ms)", "%.0f", func(m Measured) any { return m.StartP90ms })
	row("  fastest (ms)", "%.0f", func(m Measured) any { return m.StartMinms })
	row(fmt.Sprintf("%d pods from one directory, all started (s)", *pods), "%.1f", func(m Measured) any { return m.BurstS })
	row("  CPU time for each (ms)", "%.0f", func(m Measured) any { return m.BurstCPUms })
	row("all of them ended (s)", "%.1f", func(m Measured) any { return m.TeardownS })
	row("memory of the node without pods (MiB, PSS)", "%.0f", func(m Measured) any { return m.EmptyMiB })
	row("memory of the node per pod (MiB, PSS)", "%.2f", func(m Measured) any { return m.PerPodMiB })
	row(fmt.Sprintf("CPU with %d idle pods (cores)", *pods), "%.4f", func(m Measured) any { return m.IdleCores })
	w.Flush()
}

func number(v any) float64 { f, _ := v.(float64); return f }

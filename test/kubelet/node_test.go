package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/patience"
)

// criThings lists what the runtime has, and should not have.
func (l *lab) criThings() ([]string, error) {
	conn, err := dial(socketOf(l.home))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	pods, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, p := range pods.GetItems() {
		all = append(all, "sandbox "+p.GetMetadata().GetName()+" "+p.GetState().String())
	}
	for _, c := range containers.GetContainers() {
		all = append(all, "container "+c.GetMetadata().GetName()+" "+c.GetState().String())
	}
	return all, nil
}

func (l *lab) placeStatic(name, manifest string) {
	l.t.Helper()
	path := filepath.Join(l.home, "manifests", name+".yaml")
	if err := os.WriteFile(l.home+"/"+name+".tmp", []byte(manifest), 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(l.home+"/"+name+".tmp", path); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) dropStatic(name string) {
	l.t.Helper()
	if err := os.Remove(filepath.Join(l.home, "manifests", name+".yaml")); err != nil {
		l.t.Fatal(err)
	}
}

// static are the manifests of static pods.
func (l *lab) static() []string {
	found, _ := filepath.Glob(l.home + "/manifests/*.yaml") // the pattern is valid
	return found
}

// summary is what the test reads of /stats/summary.
type summary struct {
	Pods []struct {
		PodRef  struct{ Name string }
		CPU     *struct{ UsageNanoCores, UsageCoreNanoSeconds *uint64 }
		Memory  *struct{ WorkingSetBytes *uint64 }
		Network *struct{ RxBytes, TxBytes *uint64 }
		Process *struct {
			ProcessCount *uint64 `json:"process_count"`
		} `json:"process_stats"`
		EphemeralStorage *struct{ UsedBytes *uint64 } `json:"ephemeral-storage"`
		Containers       []struct {
			Name   string
			CPU    *struct{ UsageNanoCores, UsageCoreNanoSeconds *uint64 }
			Memory *struct{ WorkingSetBytes *uint64 }
			Rootfs *struct{ UsedBytes *uint64 }
			Logs   *struct{ UsedBytes *uint64 }
		}
	}
	Node struct {
		Runtime *struct {
			ImageFs *struct{ UsedBytes *uint64 }
		}
	}
}

// stats looks at what the kubelet tells of pod "steady". byRuntime says that the
// kubelet asks the runtime: cAdvisor, whom it asks otherwise, knows no pods' names
// and networks but those of the runtimes that are built into it.
func (l *lab) stats(byRuntime bool) {
	l.t.Helper()
	var why []string
	for end := time.Now().Add(patience.For(90 * time.Second)); ; time.Sleep(2 * time.Second) {
		out, err := l.try("", "get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/stats/summary")
		if err != nil {
			why = []string{err.Error()}
		} else {
			var s summary
			if err := json.Unmarshal([]byte(out), &s); err != nil {
				l.t.Fatal(err)
			}
			if why = s.lacks(byRuntime); len(why) == 0 {
				break
			}
		}
		if time.Now().After(end) {
			l.t.Errorf("/stats/summary: %s\n%.6000s", strings.Join(why, "; "), out)
			break
		}
	}
	out := l.kubectl("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/metrics/cadvisor")
	for _, m := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds"} {
		if !bytes.Contains([]byte(out), []byte(m)) {
			l.t.Errorf("/metrics/cadvisor has no %s", m)
		}
	}
	marks := []string{`pod="steady"`, `container="c"`}
	if !byRuntime {
		p := l.ready("steady")
		_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
		marks = []string{"/pod" + string(p.UID) + "/", id}
	}
	found := false
	for line := range strings.Lines(out) {
		found = found || strings.HasPrefix(line, "container_memory_working_set_bytes{") && strings.Contains(line, marks[0]) && strings.Contains(line, marks[1])
	}
	if !found {
		l.t.Errorf("/metrics/cadvisor has nothing of pod steady's container\n%.3000s", grep(out, "container_memory_working_set_bytes"))
	}
	l.expect("/metrics/resource", l.kubectl("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/metrics/resource"), `pod_memory_working_set_bytes{namespace="default",pod="steady"}`, `container_cpu_usage_seconds_total{container="c",namespace="default",pod="steady"}`)
}

func grep(text, part string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// lacks lists what a summary should say of pod "steady" and does not.
func (s summary) lacks(net bool) []string {
	var why []string
	positive := func(what string, n *uint64) {
		if n == nil || *n == 0 {
			why = append(why, "no "+what)
		}
	}
	if s.Node.Runtime == nil || s.Node.Runtime.ImageFs == nil {
		why = append(why, "no image filesystem")
	}
	for _, p := range s.Pods {
		if p.PodRef.Name != "steady" {
			continue
		}
		if p.CPU == nil || p.Memory == nil || len(p.Containers) != 1 {
			return append(why, fmt.Sprintf("pod without cpu, memory or container: %+v", p))
		}
		positive("cpu of the pod", p.CPU.UsageCoreNanoSeconds)
		positive("memory of the pod", p.Memory.WorkingSetBytes)
		if p.Network == nil {
			if net {
				why = append(why, "no network")
			}
		} else {
			positive("received bytes", p.Network.RxBytes)
		}
		c := p.Containers[0]
		if c.CPU == nil || c.Memory == nil || c.Rootfs == nil || c.Logs == nil {
			return append(why, fmt.Sprintf("container without cpu, memory, rootfs or logs: %+v", c))
		}
		positive("cpu of the container", c.CPU.UsageCoreNanoSeconds)
		positive("memory of the container", c.Memory.WorkingSetBytes)
		positive("rootfs of the container", c.Rootfs.UsedBytes)
		positive("logs of the container", c.Logs.UsedBytes)
		return why
	}
	return append(why, "nothing of pod steady")
}

func (l *lab) statsFromCadvisor() { l.stats(false) }

// alphaGates starts the kubelet anew with what it does not do by default, and
// sees pods live.
func (l *lab) alphaGates() {
	same := l.undisturbed("steady")
	l.kubelet.Stop(20 * time.Second)
	l.gate(", EventedPLEG: true, PodAndContainerStatsFromCRI: true, CRIListStreaming: true, ContainerStopSignals: true, RuntimeClassInImageCriApi: true, ImageVolumeWithDigest: true")
	restarted := time.Now()
	if err := l.kubelet.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.awaitReady(restarted)
	if err := l.healthy(); err != nil {
		l.t.Error(err)
	}
	same()
	metrics := l.kubectl("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/metrics")
	if n := grep(metrics, "kubelet_evented_pleg_connection_success_count "); n == "" || strings.HasSuffix(strings.TrimSpace(n), " 0") {
		l.t.Errorf("the kubelet takes no events: %q", grep(metrics, "kubelet_evented_pleg"))
	}
	began := time.Now()
	l.apply(simple("evented", forever, "", ""))
	l.ready("evented")
	l.t.Logf("a pod was Ready %v after its creation", time.Since(began))
	_, _ = l.try("", "exec", "evented", "--", "kill", "1") // takes the exec along, or not
	p := l.wait("evented", 30*time.Second, restartedOnce)
	l.t.Logf("seen to restart %v after its creation: %s", time.Since(began), statusText(p))
	l.remove("pod", "evented")
	l.initAndSidecar()
	l.runtime.Kill() // the kubelet loses its stream of events
	l.startRuntime()
	l.apply(simple("after", "exit 0", "", "restartPolicy: Never"))
	l.ended("after", "Succeeded")
	l.remove("pod", "after")
	l.stats(true)
	same()
}

package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/cri/sandbox"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const manyPods, containersPerPod = 5000, 2

// noPins stands for namespaces that are all gone: the sandboxes are not ready.
type noPins struct{ sandbox.Pins }

func (noPins) List() (map[string][]mountns.Kind, error) { return nil, nil }
func (noPins) Unpin(string) error                       { return nil }

// fill writes the records of many pods as a runtime leaves them.
func fill(tb testing.TB, dir, boot string, log *slog.Logger) (box, id string) {
	boxes := must(record.Open[map[string]any](filepath.Join(dir, "sandboxes"), boot, log))
	records := must(record.Open[container.Record](filepath.Join(dir, "containers"), boot, log))
	for i := range manyPods {
		meta := &runtimeapi.PodSandboxMetadata{Name: fmt.Sprint("pod-", i), Namespace: "default", Uid: fmt.Sprintf("00000000-0000-0000-0000-%012d", i)}
		labels := map[string]string{"io.kubernetes.pod.uid": meta.Uid, "io.kubernetes.pod.name": meta.Name, "io.kubernetes.pod.namespace": "default"}
		raw := must(protojson.Marshal(&runtimeapi.PodSandboxConfig{Metadata: meta, Labels: labels, LogDirectory: "/var/log/pods/x"}))
		box = record.NewID()
		at := time.Unix(1e9+int64(i), 0)
		if err := boxes.Write(box, map[string]any{"config": jsonRaw(raw), "createdAt": at, "complete": true, "stopped": true, "released": true}); err != nil {
			tb.Fatal(err)
		}
		for j := range containersPerPod {
			cfg := &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c", j)}, Image: &runtimeapi.ImageSpec{Image: "sha256:0"}, Labels: labels,
				Annotations: map[string]string{"io.kubernetes.container.hash": "abcdef", "io.kubernetes.container.restartCount": "0"},
			}
			rec := container.Record{
				SandboxID: box, Config: must(proto.Marshal(cfg)), Pod: must(proto.Marshal(meta)), Image: container.Image{ID: "sha256:0", Ref: "r@sha256:0"},
				CreatedAt: at, Complete: true, StartAt: at, Started: true, Exit: &container.Exit{At: at, Reason: "Completed"},
			}
			id = record.NewID()
			if err := records.Write(id, rec); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return box, id
}

// jsonRaw keeps encoded JSON as it is.
type jsonRaw []byte

func (j jsonRaw) MarshalJSON() ([]byte, error) { return j, nil }

// BenchmarkLists asks a server that holds ten thousand containers, in process
// and by its socket.
func BenchmarkLists(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("a runtime needs root")
	}
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	dir, log := b.TempDir(), slog.New(slog.DiscardHandler)
	boot := must(record.BootID())
	box, id := fill(b, dir, boot, log)
	begun := time.Now()
	boxes := must(sandbox.Open(sandbox.Config{Dir: filepath.Join(dir, "sandboxes"), BootID: boot, Pins: noPins{}, Network: fakeNet{}, Log: log}))
	rt := ociruntime.New(must(ociruntime.Find(ctx, "")), filepath.Join(dir, "oci"), false, ociruntime.Direct{})
	mon := must(monitor.Open(monitor.Config{Runtime: rt, Starter: ociruntime.Direct{}, ExitDir: filepath.Join(dir, "exits"), Cgroup: "/berth-bench-" + record.NewID()[:8], Log: log}))
	containers := must(container.Open(container.Config{Dir: filepath.Join(dir, "containers"), BootID: boot, Runtime: rt, Monitor: mon, Host: container.DetectHost(false), Log: log}))
	if err := boxes.Restore(ctx); err != nil {
		b.Fatal(err)
	}
	if err := containers.Restore(ctx); err != nil {
		b.Fatal(err)
	}
	b.Logf("taking over %d pods took %v", manyPods, time.Since(begun))
	images := must(image.Open(ctx, image.Config{Root: filepath.Join(dir, "images"), Logger: log}))
	defer images.Close()
	s := must(New(Config{Sandboxes: boxes, Containers: containers, Images: images, Events: NewEvents(), Log: log}))
	served := make(chan error, 1)
	socket := filepath.Join(dir, "cri.sock")
	go func() { served <- s.Serve(ctx, socket) }()
	defer func() { stop(); <-served }()
	conn := must(grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true))))
	defer conn.Close()
	c := runtimeapi.NewRuntimeServiceClient(conn)
	rec := must(containers.Status(id))
	exited := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}
	running := &runtimeapi.ContainerStateValue{}
	running.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		{"all", nil, manyPods * containersPerPod}, {"exited", &runtimeapi.ContainerFilter{State: exited}, manyPods * containersPerPod}, {"running", &runtimeapi.ContainerFilter{State: running}, 0},
		{"id", &runtimeapi.ContainerFilter{Id: id}, 1}, {"sandbox", &runtimeapi.ContainerFilter{PodSandboxId: box}, containersPerPod},
		{"pod", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": rec.GetLabels()["io.kubernetes.pod.uid"]}}, containersPerPod},
	} {
		b.Run("process/"+tc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got := s.containers(tc.filter); len(got) != tc.want {
					b.Fatal(len(got))
				}
			}
		})
		b.Run("socket/"+tc.name, func(b *testing.B) {
			for b.Loop() {
				if got, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: tc.filter}); err != nil || len(got.GetContainers()) != tc.want {
					b.Fatal(len(got.GetContainers()), err)
				}
			}
		})
	}
	b.Run("process/sandboxes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if got := s.sandboxes(nil); len(got) != manyPods {
				b.Fatal(len(got))
			}
		}
	})
	b.Run("process/sandbox-of-pod", func(b *testing.B) {
		b.ReportAllocs()
		uid := rec.GetLabels()["io.kubernetes.pod.uid"]
		for b.Loop() {
			if got := s.sandboxes(&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": uid}}); len(got) != 1 {
				b.Fatal(len(got))
			}
		}
	})
}

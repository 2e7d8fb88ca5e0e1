package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

// fakeCRI keeps CRI's promises in memory: names are unique, stop and remove are
// idempotent, a removed sandbox takes its containers along.
type fakeCRI struct {
	mu         sync.Mutex
	n          int
	calls      []string
	fail       map[string]error // by RPC
	sandboxes  map[string]*cri.RunPodSandboxRequest
	stopped    map[string]bool
	containers map[string]*cri.CreateContainerRequest
	states     map[string]cri.ContainerState
	exits      map[string]*cri.ContainerStatus
	images     map[string]*cri.Image
	remote     map[string]*cri.Image
	needAuth   string // password that the registry wants
	execCode   int32
	events     chan *cri.ContainerEventResponse
	noEvents   bool
}

func newFake() *fakeCRI {
	return &fakeCRI{
		fail: map[string]error{}, sandboxes: map[string]*cri.RunPodSandboxRequest{}, stopped: map[string]bool{},
		containers: map[string]*cri.CreateContainerRequest{}, states: map[string]cri.ContainerState{}, exits: map[string]*cri.ContainerStatus{},
		images: map[string]*cri.Image{}, remote: map[string]*cri.Image{}, events: make(chan *cri.ContainerEventResponse),
	}
}

func (f *fakeCRI) enter(ctx context.Context, rpc string) (func(), error) {
	f.mu.Lock()
	f.calls = append(f.calls, rpc)
	if err := f.fail[rpc]; err != nil {
		f.mu.Unlock()
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		f.mu.Unlock()
		return nil, status.FromContextError(err).Err()
	}
	return f.mu.Unlock, nil
}

func (f *fakeCRI) count(rpc string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == rpc {
			n++
		}
	}
	return n
}

func (f *fakeCRI) id(kind string) string { f.n++; return fmt.Sprintf("%s%d", kind, f.n) }

func notFound(id string) error { return status.Errorf(codes.NotFound, "%s: not found", id) }

func (f *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake"}, nil
}

func (f *fakeCRI) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{RuntimeHandlers: []*cri.RuntimeHandler{{Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}}}, nil
}

func (f *fakeCRI) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	leave, err := f.enter(ctx, "RunPodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	id := f.id("s")
	f.sandboxes[id] = r
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (f *fakeCRI) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	leave, err := f.enter(ctx, "StopPodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	if f.sandboxes[r.PodSandboxId] == nil {
		return nil, notFound(r.PodSandboxId)
	}
	f.stopped[r.PodSandboxId] = true
	return &cri.StopPodSandboxResponse{}, nil
}

func (f *fakeCRI) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	leave, err := f.enter(ctx, "RemovePodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	delete(f.sandboxes, r.PodSandboxId)
	for id, c := range f.containers {
		if c.PodSandboxId == r.PodSandboxId {
			delete(f.containers, id)
		}
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

func (f *fakeCRI) sandboxState(id string) cri.PodSandboxState {
	if f.stopped[id] {
		return cri.PodSandboxState_SANDBOX_NOTREADY
	}
	return cri.PodSandboxState_SANDBOX_READY
}

func (f *fakeCRI) PodSandboxStatus(ctx context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	leave, err := f.enter(ctx, "PodSandboxStatus")
	if err != nil {
		return nil, err
	}
	defer leave()
	s := f.sandboxes[r.PodSandboxId]
	if s == nil {
		return nil, notFound(r.PodSandboxId)
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Id: r.PodSandboxId, Metadata: s.Config.Metadata, State: f.sandboxState(r.PodSandboxId), CreatedAt: 1, Labels: s.Config.Labels, Annotations: s.Config.Annotations,
		Network: &cri.PodSandboxNetworkStatus{Ip: "10.1.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd00::2"}}},
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: s.Config.Linux.SecurityContext.NamespaceOptions}},
	}}, nil
}

func selected(want, have map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

func (f *fakeCRI) ListPodSandbox(ctx context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	leave, err := f.enter(ctx, "ListPodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	out := &cri.ListPodSandboxResponse{}
	for id, s := range f.sandboxes {
		if selected(r.GetFilter().GetLabelSelector(), s.Config.Labels) {
			out.Items = append(out.Items, &cri.PodSandbox{Id: id, Metadata: s.Config.Metadata, State: f.sandboxState(id), Labels: s.Config.Labels, Annotations: s.Config.Annotations})
		}
	}
	return out, nil
}

func (f *fakeCRI) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	leave, err := f.enter(ctx, "CreateContainer")
	if err != nil {
		return nil, err
	}
	defer leave()
	for _, c := range f.containers {
		if c.PodSandboxId == r.PodSandboxId && c.Config.Metadata.Name == r.Config.Metadata.Name && c.Config.Metadata.Attempt == r.Config.Metadata.Attempt {
			return nil, status.Error(codes.AlreadyExists, "name is reserved")
		}
	}
	id := f.id("c")
	f.containers[id], f.states[id] = r, cri.ContainerState_CONTAINER_CREATED
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (f *fakeCRI) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	leave, err := f.enter(ctx, "StartContainer")
	if err != nil {
		return nil, err
	}
	defer leave()
	if f.states[r.ContainerId] != cri.ContainerState_CONTAINER_CREATED {
		return nil, status.Error(codes.FailedPrecondition, "not in state created")
	}
	f.states[r.ContainerId] = cri.ContainerState_CONTAINER_RUNNING
	return &cri.StartContainerResponse{}, nil
}

func (f *fakeCRI) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	leave, err := f.enter(ctx, fmt.Sprintf("StopContainer %d", r.Timeout))
	if err != nil {
		return nil, err
	}
	defer leave()
	if f.containers[r.ContainerId] == nil {
		return nil, notFound(r.ContainerId)
	}
	f.states[r.ContainerId] = cri.ContainerState_CONTAINER_EXITED
	return &cri.StopContainerResponse{}, nil
}

func (f *fakeCRI) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	leave, err := f.enter(ctx, "RemoveContainer")
	if err != nil {
		return nil, err
	}
	defer leave()
	delete(f.containers, r.ContainerId)
	return &cri.RemoveContainerResponse{}, nil
}

func (f *fakeCRI) ContainerStatus(ctx context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	leave, err := f.enter(ctx, "ContainerStatus")
	if err != nil {
		return nil, err
	}
	defer leave()
	c := f.containers[r.ContainerId]
	if c == nil {
		return nil, notFound(r.ContainerId)
	}
	s := &cri.ContainerStatus{
		Id: r.ContainerId, Metadata: c.Config.Metadata, State: f.states[r.ContainerId], Labels: c.Config.Labels, Annotations: c.Config.Annotations,
		Image: c.Config.Image, Mounts: c.Config.Mounts, LogPath: filepath.Join(c.SandboxConfig.LogDirectory, c.Config.LogPath), CreatedAt: 5,
	}
	if e := f.exits[r.ContainerId]; e != nil {
		s.ExitCode, s.Reason, s.Message = e.ExitCode, e.Reason, e.Message
	}
	return &cri.ContainerStatusResponse{Status: s}, nil
}

func (f *fakeCRI) ListContainers(ctx context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	leave, err := f.enter(ctx, "ListContainers")
	if err != nil {
		return nil, err
	}
	defer leave()
	out := &cri.ListContainersResponse{}
	for id, c := range f.containers {
		if s := r.GetFilter().GetPodSandboxId(); (s == "" || s == c.PodSandboxId) && selected(r.GetFilter().GetLabelSelector(), c.Config.Labels) {
			out.Containers = append(out.Containers, &cri.Container{Id: id, PodSandboxId: c.PodSandboxId, Metadata: c.Config.Metadata, State: f.states[id],
				Labels: c.Config.Labels, Annotations: c.Config.Annotations, Image: c.Config.Image})
		}
	}
	return out, nil
}

func (f *fakeCRI) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	leave, err := f.enter(ctx, fmt.Sprintf("ExecSync %v %d", r.Cmd, r.Timeout))
	if err != nil {
		return nil, err
	}
	defer leave()
	return &cri.ExecSyncResponse{ExitCode: f.execCode, Stderr: []byte("sorry\n")}, nil
}

func (f *fakeCRI) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	leave, err := f.enter(ctx, "PullImage "+r.GetAuth().GetUsername())
	if err != nil {
		return nil, err
	}
	defer leave()
	if r.GetAuth().GetPassword() != f.needAuth {
		return nil, status.Error(codes.Unauthenticated, "pull access denied")
	}
	have := f.remote[r.Image.Image]
	if have == nil {
		return nil, status.Error(codes.NotFound, "manifest unknown")
	}
	f.images[r.Image.Image], f.images[have.Id] = have, have
	return &cri.PullImageResponse{ImageRef: have.Id}, nil
}

func (f *fakeCRI) ImageStatus(ctx context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	leave, err := f.enter(ctx, "ImageStatus")
	if err != nil {
		return nil, err
	}
	defer leave()
	return &cri.ImageStatusResponse{Image: f.images[r.Image.Image]}, nil
}

func (f *fakeCRI) GetContainerEvents(_ *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	if f.noEvents {
		return status.Error(codes.Unimplemented, "no events")
	}
	for {
		select {
		case <-to.Context().Done():
			return to.Context().Err()
		case e, ok := <-f.events:
			if !ok {
				return status.Error(codes.Unavailable, "the runtime went away")
			}
			if err := to.Send(e); err != nil {
				return err
			}
		}
	}
}

// host is what stands for volumes, cgroups and objects.
type host struct {
	root    string
	mounted map[string]pod.Volume
	cgroups map[pod.UID]bool
	secrets map[string]*v1.Secret
	maps    map[string]*v1.ConfigMap
}

func (h *host) Mount(_ context.Context, p *v1.Pod) (map[string]pod.Volume, error) {
	h.mounted = map[string]pod.Volume{"data": {HostPath: "/v/data"}, "config": {HostPath: "/v/config", ReadOnly: true}}
	return h.mounted, os.MkdirAll(filepath.Join(h.root, "pods", string(p.UID)), 0o750)
}
func (h *host) Unmount(context.Context, pod.UID) error { h.mounted = nil; return nil }
func (h *host) Mounted(pod.UID) (map[string]pod.Volume, bool) {
	return h.mounted, h.mounted != nil
}
func (h *host) SubPath(_ context.Context, _ *v1.Pod, s SubPath) (string, error) {
	return fmt.Sprintf("/sub/%s/%s/%d/%s", s.Volume, s.Container, s.Index, s.Path), nil
}
func (h *host) Remove(_ context.Context, uid pod.UID) error {
	return os.RemoveAll(filepath.Join(h.root, "pods", string(uid)))
}

type fakeCgroup struct{ *host }

func (c fakeCgroup) Ensure(_ context.Context, p *v1.Pod) (string, error) {
	c.cgroups[pod.UID(p.UID)] = true
	return "/kubepods/pod" + string(p.UID), nil
}
func (c fakeCgroup) Remove(_ context.Context, uid pod.UID) error { delete(c.cgroups, uid); return nil }
func (c fakeCgroup) Exists(uid pod.UID) bool                     { return c.cgroups[uid] }

func (h *host) ConfigMap(ns, name string) (*v1.ConfigMap, bool) {
	m, ok := h.maps[ns+"/"+name]
	return m, ok
}
func (h *host) Secret(ns, name string) (*v1.Secret, bool) {
	s, ok := h.secrets[ns+"/"+name]
	return s, ok
}

// bench is a Runtime over fakes.
type bench struct {
	*Runtime
	t      *testing.T
	cri    *fakeCRI
	host   *host
	pod    *v1.Pod
	mu     sync.Mutex
	events []pod.Event
	seen   pod.Observed
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, cri: newFake(), host: &host{root: dir, cgroups: map[pod.UID]bool{}, secrets: map[string]*v1.Secret{}, maps: map[string]*v1.ConfigMap{}}}
	resolv, hosts := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	for path, content := range map[string]string{resolv: "nameserver 192.0.2.1\nsearch example.org\noptions ndots:1\n", hosts: "192.0.2.9 node\n"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.Runtime = New(Config{RootDir: dir, LogDir: filepath.Join(dir, "logs"), SeccompDefault: true,
		Node: Node{Name: "node", IPs: []string{"192.0.2.9"}, Memory: 1 << 30, ResolvConf: resolv, HostsFile: hosts}},
		Deps{CRI: b.cri, Volumes: b.host, Cgroup: fakeCgroup{b.host}, Objects: b.host, Log: slog.New(slog.DiscardHandler), Events: func(_ pod.UID, e pod.Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
		}})
	b.pod = &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u1", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "x"}},
		Spec: v1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(30)), DNSPolicy: v1.DNSClusterFirst, RestartPolicy: v1.RestartPolicyAlways,
			SecurityContext: &v1.PodSecurityContext{},
			Containers: []v1.Container{{
				Name: "main", Image: "busybox", Command: []string{"/bin/$(WHAT)"}, ImagePullPolicy: v1.PullIfNotPresent,
				Env:                    []v1.EnvVar{{Name: "WHAT", Value: "sh"}, {Name: "IP", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}}}},
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: v1.TerminationMessageReadFile,
				VolumeMounts: []v1.VolumeMount{{Name: "data", MountPath: "/data", SubPath: "a"}, {Name: "config", MountPath: "/config"}},
				Ports:        []v1.ContainerPort{{Name: "http", ContainerPort: 80, HostPort: 8080, Protocol: v1.ProtocolTCP}},
			}},
		},
	}
	b.cri.remote["busybox:latest"] = &cri.Image{Id: "sha256:1", Size: 7}
	return b
}

func (b *bench) do(a pod.Action) pod.Result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	return b.Do(ctx, pod.Desired{Pod: b.pod, Source: pod.SourceFile, Inputs: pod.Inputs{Version: "7"}}, b.seen, pod.Record{}, a)
}

func (b *bench) must(a pod.Action) pod.Result {
	b.t.Helper()
	r := b.do(a)
	if r.Err != nil {
		b.t.Fatalf("%s: %v", a.Op, r.Err)
	}
	return r
}

func (b *bench) observe() pod.Observed {
	b.t.Helper()
	b.seen = *b.must(pod.Action{Op: pod.OpObserve}).Observed
	return b.seen
}

// up takes the pod to a running container and returns its ID.
func (b *bench) up() pod.ContainerID {
	b.t.Helper()
	b.must(pod.Action{Op: pod.OpMountVolumes})
	b.must(pod.Action{Op: pod.OpCreateSandbox})
	image := b.must(pod.Action{Op: pod.OpPullImage, Container: "main"}).Image
	o := b.observe()
	b.seen.Images = map[pod.ContainerName]pod.Image{"main": image}
	b.must(pod.Action{Op: pod.OpStartContainer, Container: "main", SandboxID: o.Sandboxes[0].ID, Attempt: 3})
	return b.observe().Containers[0].ID
}

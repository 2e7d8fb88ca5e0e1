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
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

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

package runtime

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

func TestPodLife(t *testing.T) {
	b := newBench(t)
	b.pod.Spec.Containers[0].Lifecycle = &v1.Lifecycle{
		PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"hello"}}},
		PreStop:   &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"bye"}}},
	}
	id := b.up()
	o := b.seen
	s, c := o.Sandboxes[0], o.Containers[0]
	if !s.Ready || !slices.Equal(s.IPs, []string{"10.1.0.2", "fd00::2"}) {
		t.Errorf("sandbox %+v", s)
	}
	if c.State != pod.Running || c.Attempt != 3 || c.SpecHash != pod.SpecHash(&b.pod.Spec.Containers[0]) || c.Image != "busybox" || c.SandboxID != s.ID {
		t.Errorf("container %+v", c)
	}
	if o.VolumesVersion != "7" || !o.Dirty || len(o.Volumes) != 2 {
		t.Errorf("local facts: %+v", o)
	}
	config := b.cri.containers[string(id)].Config
	if config.Command[0] != "/bin/sh" || string(config.Envs[1].Value) != "10.1.0.2" || config.LogPath != "main/3.log" || config.Image.Image != "sha256:1" {
		t.Errorf("config %+v", config)
	}
	var paths []string
	for _, m := range config.Mounts {
		paths = append(paths, m.ContainerPath)
	}
	if want := []string{"/data", "/config", "/etc/hosts", "/dev/termination-log"}; !slices.Equal(paths, want) {
		t.Fatalf("mounts at %v, want %v", paths, want)
	}
	if config.Mounts[0].HostPath != "/sub/data/main/0/a" || config.Mounts[0].Readonly || !config.Mounts[1].Readonly {
		t.Errorf("mounts %+v", config.Mounts)
	}
	hosts, err := os.ReadFile(config.Mounts[2].HostPath)
	if err != nil || !strings.Contains(string(hosts), "10.1.0.2\tweb\nfd00::2\tweb\n") {
		t.Errorf("hosts file %q, %v", hosts, err)
	}
	if st, err := os.Stat(config.Mounts[3].HostPath); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("termination message file: %v, %v", st, err)
	}
	b.must(pod.Action{Op: pod.OpPostStart, Container: "main", ContainerID: id})
	b.must(pod.Action{Op: pod.OpStopContainer, Container: "main", ContainerID: id, Grace: 10 * time.Second, PreStop: true})
	for _, call := range []string{"ExecSync [hello] 9", "ExecSync [bye] 9", "StopContainer 10"} {
		if b.cri.count(call) != 1 {
			t.Errorf("no call %q in %v", call, b.cri.calls)
		}
	}
	b.cri.exits[string(id)] = &cri.ContainerStatus{ExitCode: 1, Reason: "Error", Message: "runtime says"}
	if err := os.WriteFile(config.Mounts[3].HostPath, []byte(strings.Repeat("x", 5000)+"end"), 0o666); err != nil {
		t.Fatal(err)
	}
	c = b.observe().Containers[0]
	if c.State != pod.Exited || c.ExitCode != 1 || !strings.HasPrefix(c.Message, "runtime says: xxx") || !strings.HasSuffix(c.Message, "end") || len(c.Message) != len("runtime says: ")+4096 {
		t.Errorf("after the end: %d bytes of message, %+v", len(c.Message), c)
	}
	for range 2 { // each done twice: the second finds the work done
		b.must(pod.Action{Op: pod.OpRemoveContainer, ContainerID: id})
		b.must(pod.Action{Op: pod.OpStopSandbox, SandboxID: s.ID})
		b.must(pod.Action{Op: pod.OpRemoveSandbox, SandboxID: s.ID})
		b.must(pod.Action{Op: pod.OpUnmountVolumes})
		r := b.Do(t.Context(), pod.Desired{Pod: b.pod, Forget: true}, b.seen, pod.Record{}, pod.Action{Op: pod.OpCleanup})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if o := b.observe(); o.Dirty || o.Volumes != nil || len(o.Sandboxes)+len(o.Containers) != 0 {
		t.Errorf("left over: %+v", o)
	}
	if left, _ := os.ReadDir(b.cfg.LogDir); len(left) != 0 {
		t.Errorf("logs are left: %v", left)
	}
}

func TestStartAdoptsWhatIsThere(t *testing.T) {
	b := newBench(t)
	b.up()
	start := pod.Action{Op: pod.OpStartContainer, Container: "main", SandboxID: b.seen.Sandboxes[0].ID, Attempt: 3}
	for _, state := range []cri.ContainerState{cri.ContainerState_CONTAINER_CREATED, cri.ContainerState_CONTAINER_RUNNING, cri.ContainerState_CONTAINER_EXITED} {
		b.cri.states[string(b.seen.Containers[0].ID)] = state
		b.must(start)
	}
	if b.cri.count("CreateContainer") != 1 || b.cri.count("StartContainer") != 2 {
		t.Errorf("calls %v", b.cri.calls)
	}
}

func TestPull(t *testing.T) {
	secret := func(password string) *v1.Secret {
		return &v1.Secret{Type: v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths":{"https://index.docker.io/v1/":{"username":"` + password + `","password":"` + password + `"}}}`)}}
	}
	tests := []struct {
		what   string
		setUp  func(*bench)
		kind   pod.Kind
		reason pod.Reason
		pulls  []string
		text   string
	}{
		{what: "missing, IfNotPresent", pulls: []string{""}},
		{what: "present, IfNotPresent", setUp: func(b *bench) { b.cri.images["busybox:latest"] = &cri.Image{Id: "i"} }},
		{what: "present, Always", setUp: func(b *bench) {
			b.cri.images["busybox:latest"] = &cri.Image{Id: "i"}
			b.pod.Spec.Containers[0].ImagePullPolicy = v1.PullAlways
		}, pulls: []string{""}},
		{what: "missing, Never", setUp: func(b *bench) { b.pod.Spec.Containers[0].ImagePullPolicy = v1.PullNever }, kind: pod.NotFound, reason: pod.ErrImageNeverPull,
			text: `Container image "busybox" is not present with pull policy of Never`},
		{what: "bad name", setUp: func(b *bench) { b.pod.Spec.Containers[0].Image = "UPPER" }, kind: pod.Invalid, reason: pod.InvalidImageName, text: `Failed to apply default image tag "UPPER"`},
		{what: "unknown to the registry", setUp: func(b *bench) { b.cri.remote = nil }, kind: pod.NotFound, reason: pod.ErrImagePull, pulls: []string{""}, text: "manifest unknown"},
		{what: "registry down", setUp: func(b *bench) {
			b.cri.fail["PullImage "] = status.Error(codes.Unavailable, "RegistryUnavailable: no route")
		},
			kind: pod.Unavailable, reason: pod.RegistryUnavailable, pulls: []string{""}},
		{what: "no credentials", setUp: func(b *bench) { b.cri.needAuth = "pw" }, kind: pod.Denied, reason: pod.ErrImagePull, pulls: []string{""}},
		{what: "the second secret fits", setUp: func(b *bench) {
			b.cri.needAuth = "pw"
			b.pod.Spec.ImagePullSecrets = []v1.LocalObjectReference{{Name: "gone"}, {Name: "wrong"}, {Name: "right"}}
			b.host.secrets["default/wrong"], b.host.secrets["default/right"] = secret("no"), secret("pw")
		}, pulls: []string{"no", "pw"}},
		{what: "inspection fails", setUp: func(b *bench) { b.cri.fail["ImageStatus"] = status.Error(codes.Unknown, "boom") }, kind: pod.Unavailable, reason: pod.ImageInspectError},
	}
	for _, tt := range tests {
		b := newBench(t)
		if tt.setUp != nil {
			tt.setUp(b)
		}
		r := b.do(pod.Action{Op: pod.OpPullImage, Container: "main"})
		var e *pod.Error
		if errors.As(r.Err, &e) != (tt.reason != "") {
			t.Errorf("%s: %v", tt.what, r.Err)
			continue
		}
		if e != nil && (e.Kind != tt.kind || e.Reason != tt.reason || !strings.Contains(e.Err.Error(), tt.text) || strings.Contains(e.Error(), "rpc error")) {
			t.Errorf("%s: %v %v %v", tt.what, e.Kind, e.Reason, e)
		}
		if e == nil && (r.Image.Ref == "" || r.Image.Pulled != (len(tt.pulls) > 0)) {
			t.Errorf("%s: image %+v", tt.what, r.Image)
		}
		var pulls []string
		for _, c := range b.cri.calls {
			if user, ok := strings.CutPrefix(c, "PullImage "); ok {
				pulls = append(pulls, user)
			}
		}
		if !slices.Equal(pulls, tt.pulls) {
			t.Errorf("%s: pulled as %q, want %q", tt.what, pulls, tt.pulls)
		}
		if told := slices.ContainsFunc(b.events, func(e pod.Event) bool { return e.Reason == pod.Pulling }); told != (len(tt.pulls) > 0) {
			t.Errorf("%s: events %+v", tt.what, b.events)
		}
		for _, e := range b.events {
			if e.Reason == "FailedToRetrieveImagePullSecret" && !strings.Contains(e.Message, "(gone)") || strings.Contains(e.Message, "pw") {
				t.Errorf("%s: event %q", tt.what, e.Message)
			}
		}
	}
}

func TestFailures(t *testing.T) {
	start := pod.Action{Op: pod.OpStartContainer, Container: "main", Attempt: 4}
	tests := []struct {
		what   string
		action pod.Action
		setUp  func(*bench)
		kind   pod.Kind
		reason pod.Reason
		text   string
	}{
		{"sandbox", pod.Action{Op: pod.OpCreateSandbox}, func(b *bench) {
			b.cri.fail["RunPodSandbox"] = status.Error(codes.ResourceExhausted, "no address left")
		}, pod.Exhausted, pod.FailedCreatePodSandBox, "no address left"},
		{"network not ready", pod.Action{Op: pod.OpCreateSandbox}, func(b *bench) {
			b.cri.fail["RunPodSandbox"] = status.Error(codes.Unavailable, "no conflist")
			b.cri.status = &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{{Type: cri.NetworkReady, Reason: "NetworkPluginNotReady", Message: "none is there"}}}}
		}, pod.Unavailable, pod.NetworkNotReady, "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:none is there: "},
		{"user namespace", pod.Action{Op: pod.OpCreateSandbox}, func(b *bench) { b.pod.Spec.HostUsers = ptr.To(false) }, pod.Invalid, pod.FailedCreatePodSandBox, "hostUsers"},
		{"create", start, func(b *bench) { b.cri.fail["CreateContainer"] = status.Error(codes.Unknown, "no space") }, pod.Unavailable, pod.CreateContainerError, "no space"},
		{"start", start, func(b *bench) {
			b.cri.fail["StartContainer"] = status.Error(codes.InvalidArgument, "exec: no such file")
		}, pod.Invalid, pod.RunContainerError, "no such file"},
		{"config map", start, func(b *bench) {
			b.pod.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}
		}, pod.NotFound, pod.CreateContainerConfigError, `configmap "cm" not found`},
		{"volume", start, func(b *bench) { b.pod.Spec.Containers[0].VolumeMounts[0].Name = "other" }, pod.NotFound, pod.CreateContainerConfigError, `cannot find volume "other" to mount into container "main"`},
		{"subPath leads out", start, func(b *bench) { b.pod.Spec.Containers[0].VolumeMounts[0].SubPath = "../x" }, pod.Invalid, pod.CreateContainerConfigError, "stay within"},
		{"image gone", start, func(b *bench) { b.cri.images = nil }, pod.NotFound, pod.CreateContainerError, "not there any more"},
		{"runs as root", start, func(b *bench) { b.pod.Spec.SecurityContext.RunAsNonRoot = ptr.To(true) }, pod.Invalid, pod.CreateContainerConfigError,
			`container has runAsNonRoot and image will run as root (pod: "web_default(u1)", container: main)`},
		{"hook", pod.Action{Op: pod.OpPostStart, Container: "main", ContainerID: "c2"}, func(b *bench) {
			b.pod.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"a", "b"}}}}
			b.cri.execCode = 3
		}, pod.Unavailable, pod.PostStartHookError, "command 'a b' exited with 3: sorry"},
		{"observe", pod.Action{Op: pod.OpObserve}, func(b *bench) { b.cri.fail["ListContainers"] = status.Error(codes.DeadlineExceeded, "slow") }, pod.Timeout, "", "slow"},
		{"unknown op", pod.Action{Op: "dance"}, func(*bench) {}, pod.Internal, "", "dance"},
	}
	for _, tt := range tests {
		b := newBench(t)
		b.up()
		tt.setUp(b)
		tt.action.SandboxID = b.seen.Sandboxes[0].ID
		r := b.do(tt.action)
		var e *pod.Error
		if !errors.As(r.Err, &e) || e.Kind != tt.kind || e.Reason != tt.reason || !strings.Contains(e.Error(), tt.text) || strings.Contains(e.Error(), "rpc error") {
			t.Errorf("%s: %+v", tt.what, r.Err)
		}
	}
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, a := range []pod.Op{pod.OpObserve, pod.OpCreateSandbox, pod.OpPullImage, pod.OpStartContainer, pod.OpStopContainer} {
		r := b.Do(ctx, pod.Desired{Pod: b.pod}, pod.Observed{}, pod.Record{}, pod.Action{Op: a, Container: "main"})
		if pod.KindOf(r.Err) != pod.Canceled {
			t.Errorf("%s after a change of mind: %v", a, r.Err)
		}
	}
	if r := b.Do(ctx, pod.Desired{}, pod.Observed{}, pod.Record{}, pod.Action{Op: pod.OpObserve}); pod.KindOf(r.Err) != pod.Internal {
		t.Errorf("no pod: %v", r.Err)
	}
}

func TestHTTPHook(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r; w.WriteHeader(500) }))
	defer server.Close()
	u, _ := url.Parse(server.URL)
	b := newBench(t)
	id := b.up()
	for _, scheme := range []v1.URIScheme{v1.URISchemeHTTP, v1.URISchemeHTTPS} {
		b.pod.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{HTTPGet: &v1.HTTPGetAction{
			Host: u.Hostname(), Port: intstr.FromString(u.Port()), Path: "ready", Scheme: scheme, HTTPHeaders: []v1.HTTPHeader{{Name: "Authorization", Value: "s"}, {Name: "Host", Value: "h"}}}}}
		b.must(pod.Action{Op: pod.OpPostStart, Container: "main", ContainerID: id})
		if got.URL.Path != "/ready" || got.UserAgent() != "kube-lifecycle/1.36" || got.Host != "h" || (got.Header.Get("Authorization") == "") != (scheme == v1.URISchemeHTTPS) {
			t.Errorf("%s: %+v", scheme, got)
		}
	}
	b.pod.Spec.Containers[0].Lifecycle.PostStart.HTTPGet.Port = intstr.FromString("nowhere")
	if r := b.do(pod.Action{Op: pod.OpPostStart, Container: "main", ContainerID: id}); pod.KindOf(r.Err) != pod.Invalid {
		t.Errorf("unknown port: %v", r.Err)
	}
}

func TestPreStopWithinGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.pod.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: 6}}}
		b.cri.containers["c"] = &cri.CreateContainerRequest{}
		for grace, want := range map[time.Duration]string{10 * time.Second: "StopContainer 4", 3 * time.Second: "StopContainer 2"} {
			r := b.Do(t.Context(), pod.Desired{Pod: b.pod}, pod.Observed{}, pod.Record{}, pod.Action{Op: pod.OpStopContainer, Container: "main", ContainerID: "c", Grace: grace, PreStop: true})
			if r.Err != nil || b.cri.count(want) != 1 {
				t.Errorf("grace %v: %v, calls %v", grace, r.Err, b.cri.calls)
			}
		}
		if len(b.events) != 1 || b.events[0].Reason != pod.FailedPreStopHook {
			t.Errorf("events %+v", b.events)
		}
	})
}

func TestFallbackToLogs(t *testing.T) {
	b := newBench(t)
	b.pod.Spec.Containers[0].TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	id := b.up()
	log := b.seen.Containers[0].LogPath
	content := strings.Repeat("2026-01-01T00:00:00Z stdout F old\n", 200) + "2026-01-01T00:00:00Z stdout P par\n2026-01-01T00:00:00Z stdout F tial\n"
	if err := os.WriteFile(log, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	b.cri.states[string(id)] = cri.ContainerState_CONTAINER_EXITED
	b.cri.exits[string(id)] = &cri.ContainerStatus{ExitCode: 2}
	if m := b.observe().Containers[0].Message; !strings.HasSuffix(m, "old\npartial\n") || strings.Count(m, "\n") != 79 {
		t.Errorf("message %q", m)
	}
	b.cri.exits[string(id)].ExitCode = 0
	if m := b.observe().Containers[0].Message; m != "" {
		t.Errorf("without an error: %q", m)
	}
	// A log that leads out of the logs is not followed.
	b.cri.exits[string(id)].ExitCode = 2
	secret := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(os.WriteFile(secret, []byte("t stdout F secret\n"), 0o600), os.Remove(log), os.Symlink(secret, log)); err != nil {
		t.Fatal(err)
	}
	if m := b.observe().Containers[0].Message; m != "" {
		t.Errorf("read through a link: %q", m)
	}
}

func TestKnown(t *testing.T) {
	b := newBench(t)
	b.pod.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"bye"}}}}
	b.up()
	b.cri.sandboxes["foreign"] = &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Uid: "x"}}}
	known, err := New(b.cfg, b.Deps).Known(t.Context())
	if err != nil || len(known) != 1 {
		t.Fatalf("%v, %v", known, err)
	}
	k := known["u1"]
	p := k.Pod
	if k.Source != pod.SourceFile || p.Name != "web" || p.Namespace != "default" || p.Labels["app"] != "web" || len(p.Labels) != 1 || p.Annotations["note"] != "x" || *p.Spec.TerminationGracePeriodSeconds != 30 {
		t.Errorf("%+v", k)
	}
	c := p.Spec.Containers[0]
	if c.Name != "main" || c.Image != "busybox" || c.Lifecycle.PreStop.Exec.Command[0] != "bye" || c.Ports[0].Name != "http" || pod.SpecHash(&c) != k.Observed.Containers[0].SpecHash {
		t.Errorf("%+v", c)
	}
	if k.Observed.Volumes == nil || k.Observed.VolumesVersion != "" {
		t.Errorf("volumes after a restart: %v at version %q", k.Observed.Volumes, k.Observed.VolumesVersion)
	}
	b.cri.fail["ContainerStatus"] = status.Error(codes.Unavailable, "not now")
	if _, err := b.Known(t.Context()); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("an unknown status was taken for none: %v", err)
	}
}

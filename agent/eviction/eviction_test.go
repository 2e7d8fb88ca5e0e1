package eviction

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berthd/berth/agent/pod"
)

func ephemeral(name, limit string) v1.Container {
	c := v1.Container{Name: name}
	if limit != "" {
		c.Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse(limit)}
	}
	return c
}

func emptyDir(name, limit string, medium v1.StorageMedium) v1.Volume {
	v := v1.Volume{Name: name, VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: medium}}}
	if limit != "" {
		q := resource.MustParse(limit)
		v.EmptyDir.SizeLimit = &q
	}
	return v
}

func podOf(containers []v1.Container, volumes ...v1.Volume) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{Containers: containers, Volumes: volumes}}
	p.Namespace, p.Name = "default", "a"
	return p
}

const mi = 1 << 20

func TestExceeded(t *testing.T) {
	one := func(limit string, volumes ...v1.Volume) *v1.Pod {
		return podOf([]v1.Container{ephemeral("c", limit)}, volumes...)
	}
	two := podOf([]v1.Container{ephemeral("c", "2Mi"), ephemeral("d", "100Mi")}, emptyDir("v", "", ""), emptyDir("m", "", v1.StorageMediumMemory))
	type uses map[pod.ContainerName]int64
	type fills map[string]int64
	tests := []struct {
		name       string
		pod        *v1.Pod
		containers uses
		volumes    fills
		want       string
	}{
		{"no limits", one("", emptyDir("v", "", "")), uses{"c": 1 << 40}, fills{"v": 1 << 40}, ""},
		{"at the limit of a volume", one("", emptyDir("v", "5Mi", "")), nil, fills{"v": 5 * mi}, ""},
		{"over the limit of a volume", one("", emptyDir("v", "5Mi", "")), nil, fills{"v": 5*mi + 1}, `Usage of EmptyDir volume "v" exceeds the limit "5Mi". `},
		{"over the limit of a volume in memory", one("", emptyDir("v", "5Mi", v1.StorageMediumMemory)), nil, fills{"v": 6 * mi}, `Usage of EmptyDir volume "v" exceeds the limit "5Mi". `},
		{"a limit of 0 is none", one("", emptyDir("v", "0", "")), nil, fills{"v": 6 * mi}, ""},
		{"at the limit of the pod", one("5Mi"), uses{"c": 5 * mi}, nil, ""},
		{"over the limit of the only container", one("5Mi"), uses{"c": 6 * mi}, nil, "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "},
		{"volumes count as the pod's", one("5Mi", emptyDir("v", "", "")), uses{"c": 3 * mi}, fills{"v": 3 * mi}, "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "},
		{"volumes in memory do not", two, uses{"c": mi}, fills{"m": 1 << 40}, ""},
		{"over the limit of one of two containers", two, uses{"c": 3 * mi}, nil, `Container c exceeded its local ephemeral storage limit "2Mi". `},
		{"over the limit of both together", two, uses{"c": mi, "d": 50 * mi}, fills{"v": 60 * mi}, "Pod ephemeral local storage usage exceeds the total limit of containers 102Mi. "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Exceeded(tt.pod, Usage{Containers: tt.containers, Volumes: tt.volumes}, time.Now())
			switch {
			case got == nil && tt.want != "":
				t.Errorf("not evicted, want %q", tt.want)
			case got != nil && (got.Message != tt.want || got.Reason != pod.Evicted || *got.Grace != time.Second || got.Disruption != ""):
				t.Errorf("got %+v, want %q", got, tt.want)
			}
		})
	}
}

func TestNeeds(t *testing.T) {
	bare := []v1.Container{ephemeral("c", "")}
	for name, tt := range map[string]struct {
		pod  *v1.Pod
		want Needs
	}{
		"nothing":            {podOf(bare, emptyDir("v", "", "")), Needs{}},
		"a volume":           {podOf(bare, emptyDir("v", "1Mi", ""), emptyDir("w", "", "")), Needs{Volumes: []string{"v"}}},
		"a volume in memory": {podOf(bare, emptyDir("v", "1Mi", v1.StorageMediumMemory)), Needs{Volumes: []string{"v"}}},
		"a container": {podOf([]v1.Container{ephemeral("c", "1Mi")}, emptyDir("v", "", ""), emptyDir("m", "", v1.StorageMediumMemory)),
			Needs{Containers: true, Volumes: []string{"v"}}},
	} {
		got := NeedsOf(tt.pod)
		if got.Containers != tt.want.Containers || !slices.Equal(got.Volumes, tt.want.Volumes) || got.None() != (name == "nothing") {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
}

// world is a node with pods whose sizes are made up.
type world struct {
	pods     []pod.Snapshot
	sizes    map[string]int64 // of paths and containers
	measured []string
	first    time.Time // that something was measured
	ended    map[pod.UID]string
	events   []string
}

func (w *world) Snapshots() []pod.Snapshot { return w.pods }

func (w *world) Terminate(uid pod.UID, t pod.Termination) bool {
	w.ended[uid] = t.Message
	for i := range w.pods {
		if w.pods[i].UID == uid {
			w.pods[i].Desired.Termination = &t
		}
	}
	return true
}

func (w *world) Tree(_ context.Context, path string) (int64, error) {
	w.measured = append(w.measured, path)
	if w.first.IsZero() {
		w.first = time.Now()
	}
	if strings.Contains(path, "broken") {
		return 0, errors.New("input/output error")
	}
	return w.sizes[path], nil
}

func (w *world) Own(ctx context.Context, uid pod.UID) (int64, error) {
	return w.Tree(ctx, "own-"+string(uid))
}

func (w *world) WritableLayer(_ context.Context, id pod.ContainerID) (int64, error) {
	w.measured = append(w.measured, string(id))
	return w.sizes[string(id)], nil
}

func running(uid string, p *v1.Pod) pod.Snapshot {
	s := pod.Snapshot{UID: pod.UID(uid), Desired: pod.Desired{Pod: p}, Status: v1.PodStatus{Phase: v1.PodRunning}}
	s.Observed.Volumes = map[string]pod.Volume{}
	for _, v := range p.Spec.Volumes {
		s.Observed.Volumes[v.Name] = pod.Volume{HostPath: "/" + uid + "/" + v.Name}
	}
	for _, c := range p.Spec.Containers {
		s.Observed.Containers = append(s.Observed.Containers, pod.Container{ID: pod.ContainerID(uid + "-" + c.Name), Name: pod.ContainerName(c.Name), State: pod.Running, LogPath: "/log/" + uid + "/" + c.Name + "/0.log"},
			pod.Container{ID: pod.ContainerID(uid + "-old"), Name: pod.ContainerName(c.Name), State: pod.Exited})
	}
	return s
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limited := func() *v1.Pod { return podOf([]v1.Container{ephemeral("c", "5Mi")}, emptyDir("v", "2Mi", "")) }
		ended := running("ended", limited())
		ended.Status.Phase = v1.PodSucceeded
		broken := limited()
		broken.Spec.Volumes[0].Name = "broken"
		w := &world{ended: map[pod.UID]string{}, sizes: map[string]int64{
			"logs-c": 3 * mi, "/log/logs/c": 3 * mi, "/full/v": 3 * mi, "/critical/v": 3 * mi, "broken-c": 6 * mi, "/free/v": 1 << 40, "/ended/v": 1 << 40,
			"own-hosts": 6 * mi, // its containers have written to /etc/hosts
		}}
		w.pods = []pod.Snapshot{
			running("free", podOf([]v1.Container{ephemeral("c", "")}, emptyDir("v", "", ""))),
			running("good", limited()), running("logs", limited()), running("full", limited()), running("critical", limited()), running("broken", broken), ended,
			running("hosts", limited()),
		}
		var log strings.Builder
		watch := NewWatch(Config{
			Pods: w, Measure: w, Exempt: func(p *v1.Pod) bool { return p == w.pods[4].Desired.Pod },
			Events: func(uid pod.UID, e pod.Event) {
				w.events = append(w.events, string(uid)+" "+string(e.Reason)+" "+e.Message)
			},
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- watch.Run(ctx) }()
		begun := time.Now()
		time.Sleep(34 * time.Second)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		if early := w.first.Sub(begun); early < 10*time.Second || early > 11*time.Second {
			t.Errorf("the first was measured after %v", early)
		}
		const whole = "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
		if w.ended["logs"] != whole || w.ended["broken"] != whole || w.ended["full"] != `Usage of EmptyDir volume "v" exceeds the limit "2Mi". ` || w.ended["hosts"] != whole || len(w.ended) != 4 {
			t.Errorf("ended: %q", w.ended)
		}
		if len(w.events) != 4 || !slices.Contains(w.events, "logs Evicted "+whole) {
			t.Errorf("events: %q", w.events)
		}
		for _, not := range []string{"/free/v", "free-c", "/ended/v", "good-old"} {
			if slices.Contains(w.measured, not) {
				t.Errorf("%s was measured", not)
			}
		}
		for _, once := range []string{"it is not evicted", "could be measured"} {
			if n := strings.Count(log.String(), once); n != 1 {
				t.Errorf("%q is in the log %d times:\n%s", once, n, log.String())
			}
		}
	})
}

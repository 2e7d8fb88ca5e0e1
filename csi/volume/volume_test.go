package volume

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

type store struct {
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
}

func (s store) ConfigMap(ns, name string) (*v1.ConfigMap, bool) {
	o, ok := s.configMaps[ns+"/"+name]
	return o, ok
}

func (s store) Secret(ns, name string) (*v1.Secret, bool) {
	o, ok := s.secrets[ns+"/"+name]
	return o, ok
}

var objects = store{
	configMaps: map[string]*v1.ConfigMap{
		"default/cm":  {Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"c": {0}}},
		"default/big": {Data: map[string]string{"a": strings.Repeat("x", maxObject+1)}},
	},
	secrets: map[string]*v1.Secret{
		"default/s":     {Data: map[string][]byte{"k": []byte("hush")}},
		"default/plain": {Data: map[string][]byte{"k": []byte("old")}, StringData: map[string]string{"k": "new", "l": "x"}},
	},
}

const podYAML = `
metadata:
  name: web
  namespace: default
  uid: u1
  labels: {b: "2", a: "say \"hi\""}
  annotations: {note: "two\nlines"}
spec:
  containers:
  - name: main
    volumeMounts: [{name: v, mountPath: /v}]
    resources:
      limits: {memory: 100Mi}
      requests: {cpu: 1500m, memory: 10M}
  - name: free
`

func testPod(t *testing.T, source string) *v1.Pod {
	t.Helper()
	var pod v1.Pod
	if err := yaml.UnmarshalStrict([]byte(podYAML), &pod); err != nil {
		t.Fatal(err)
	}
	var vol v1.Volume
	if err := yaml.UnmarshalStrict([]byte("{name: v, "+source+"}"), &vol); err != nil {
		t.Fatal(err)
	}
	pod.Spec.Volumes = []v1.Volume{vol, {Name: "unused", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{}}}}
	return &pod
}

// show renders a payload as "path mode content" in order.
func show(p Payload) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(&b, "%s %o %q; ", k, p[k].Mode, p[k].Data)
	}
	return strings.TrimSuffix(b.String(), "; ")
}

func TestRender(t *testing.T) {
	for _, tc := range []struct{ name, source, want, err string }{
		{name: "whole config map", source: `configMap: {name: cm}`, want: `a 644 "1"; b 644 "2"; c 644 "\x00"`},
		{name: "items and modes", source: `configMap: {name: cm, defaultMode: 0400, items: [{key: a, path: x/y}, {key: b, path: z, mode: 0755}]}`,
			want: `x/y 400 "1"; z 755 "2"`},
		{name: "missing config map", source: `configMap: {name: nope}`, err: `NotFound: configmap "nope" not found`},
		{name: "missing optional", source: `configMap: {name: nope, optional: true}`},
		{name: "missing key", source: `configMap: {name: cm, items: [{key: k, path: x}]}`,
			err: `NotFound: configmap references non-existent config key: k (in configmap "cm")`},
		{name: "missing optional key", source: `configMap: {name: cm, optional: true, items: [{key: k, path: x}, {key: a, path: w}]}`, want: `w 644 "1"`},
		{name: "too large", source: `configMap: {name: big}`, err: `Invalid: configmap "big" holds 1048577 bytes; at most 1048576 are allowed`},
		{name: "secret", source: `secret: {secretName: s, defaultMode: 256}`, want: `k 400 "hush"`},
		{name: "secret of strings", source: `secret: {secretName: plain}`, want: `k 644 "new"; l 644 "x"`},
		{name: "missing secret", source: `secret: {secretName: nope}`, err: `NotFound: secret "nope" not found`},
		{name: "missing secret key", source: `secret: {secretName: s, items: [{key: q, path: x}]}`,
			err: `NotFound: references non-existent secret key: q (in secret "s")`},
		{name: "fields", source: `downwardAPI: {items: [
			{path: labels, fieldRef: {fieldPath: metadata.labels}},
			{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}},
			{path: all, fieldRef: {fieldPath: metadata.annotations}},
			{path: none, fieldRef: {fieldPath: "metadata.labels['z']"}},
			{path: id, mode: 0440, fieldRef: {fieldPath: metadata.uid}}]}`,
			want: `all 644 "note=\"two\\nlines\""; id 440 "u1"; labels 644 "a=\"say \\\"hi\\\"\"\nb=\"2\""; none 644 ""; note 644 "two\nlines"`},
		{name: "resources", source: `downwardAPI: {items: [
			{path: mem, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}},
			{path: req, resourceFieldRef: {containerName: main, resource: requests.memory, divisor: 1Mi}},
			{path: cpu, resourceFieldRef: {containerName: main, resource: requests.cpu}},
			{path: milli, resourceFieldRef: {containerName: main, resource: requests.cpu, divisor: 1m}},
			{path: node, resourceFieldRef: {containerName: free, resource: limits.cpu}},
			{path: zero, resourceFieldRef: {containerName: free, resource: requests.cpu}}]}`,
			want: `cpu 644 "2"; mem 644 "100"; milli 644 "1500"; node 644 "4"; req 644 "10"; zero 644 "0"`},
		{name: "unknown field", source: `downwardAPI: {items: [{path: x, fieldRef: {fieldPath: spec.nodeName}}]}`, err: `Invalid: unsupported fieldPath: spec.nodeName`},
		{name: "unknown container", source: `downwardAPI: {items: [{path: x, resourceFieldRef: {containerName: nemo, resource: limits.cpu}}]}`, err: `Invalid: resourceFieldRef names container "nemo"`},
		{name: "projected", source: `projected: {defaultMode: 0440, sources: [{configMap: {name: cm, items: [{key: a, path: d/a}]}},
			{secret: {name: s}}, {secret: {name: nope, optional: true}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}`,
			want: `d/a 440 "1"; k 440 "hush"; name 440 "web"`},
		{name: "token", source: `projected: {sources: [{serviceAccountToken: {path: token}}]}`, err: `Invalid: serviceAccountToken needs an API server`},
		{name: "escape", source: `configMap: {name: cm, items: [{key: a, path: x/../../y}]}`, err: `Invalid: invalid path: must not contain '..'`},
		{name: "writer's own name", source: `configMap: {name: cm, items: [{key: a, path: ..data}]}`, err: `Invalid: invalid path: must not start with '..'`},
		{name: "absolute", source: `configMap: {name: cm, items: [{key: a, path: /etc/x}]}`, err: `Invalid: invalid path: must be relative path`},
		{name: "two spellings of one path", source: `configMap: {name: cm, items: [{key: a, path: x//y/.}, {key: b, path: z/}]}`, want: `x/y 644 "1"; z 644 "2"`},
		{name: "the volume itself", source: `configMap: {name: cm, items: [{key: a, path: ./}]}`, err: `Invalid: invalid path: names the volume itself`},
		{name: "several sources fail", source: `projected: {sources: [{configMap: {name: nope}}, {secret: {name: none}}]}`,
			err: `NotFound: [configmap "nope" not found, secret "none" not found]`},
		{name: "waiting in vain", source: `projected: {sources: [{configMap: {name: nope}}, {serviceAccountToken: {path: token}}]}`,
			err: `Invalid: [configmap "nope" not found, serviceAccountToken needs`},
		{name: "later source wins", source: `projected: {sources: [{configMap: {name: cm, items: [{key: a, path: x}]}}, {configMap: {name: cm, items: [{key: b, path: x}]}}]}`,
			want: `x 644 "2"`},
		{name: "clash", source: `configMap: {name: cm, items: [{key: a, path: x}, {key: b, path: x/y/z}]}`, err: `Invalid: paths "x" and "x/y/z" clash`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := testPod(t, tc.source)
			volumes, refused := Of(pod)
			if refused != nil {
				t.Fatal(refused)
			}
			if len(volumes) != 1 || !volumes[0].Rendered || !volumes[0].ReadOnly {
				t.Fatalf("planned %+v", volumes)
			}
			got, err := Facts{Pod: pod, Objects: objects, Allocatable: v1.ResourceList{"cpu": resource.MustParse("4")}}.Render(volumes[0])
			if tc.err != "" {
				var e *Error
				if !errors.As(err, &e) || !strings.HasPrefix(e.Code.String()+": "+e.Error(), tc.err) {
					t.Fatalf("error %v, want %s", err, tc.err)
				}
				return
			}
			if err != nil || show(got) != tc.want {
				t.Errorf("rendered %s (%v)\n    want %s", show(got), err, tc.want)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct{ name, source, want string }{
		{"empty dir", `emptyDir: {}`, `{emptyDir volumes/kubernetes.io~empty-dir/v disk writable}`},
		{"memory", `emptyDir: {medium: Memory}`, `{emptyDir volumes/kubernetes.io~empty-dir/v memory writable}`},
		{"huge pages", `emptyDir: {medium: HugePages-2Mi}`, `{emptyDir volumes/kubernetes.io~empty-dir/v memory writable}`},
		{"odd medium", `emptyDir: {medium: Paper}`, `MountVolume.SetUp failed for volume "v" : unknown storage medium "Paper"`},
		{"host path", `hostPath: {path: /tmp}`, `{hostPath  disk writable}`},
		{"config map", `configMap: {name: x}`, `{configMap volumes/kubernetes.io~configmap/v disk read-only}`},
		{"secret", `secret: {secretName: x}`, `{secret volumes/kubernetes.io~secret/v memory read-only}`},
		{"downward", `downwardAPI: {}`, `{downwardAPI volumes/kubernetes.io~downward-api/v memory read-only}`},
		{"projected", `projected: {}`, `{projected volumes/kubernetes.io~projected/v memory read-only}`},
		{"git", `gitRepo: {repository: x}`, `MountVolume.SetUp failed for volume "v" : gitRepo volumes run code`},
		{"claim", `persistentVolumeClaim: {claimName: x}`, `MountVolume.SetUp failed for volume "v" : this kind of volume is not offered`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			volumes, err := Of(testPod(t, tc.source))
			var got string
			if err != nil {
				got = err.Error()
			} else {
				v := volumes[0]
				got = fmt.Sprintf("{%s %s %s %s}", v.Kind, v.Dir,
					map[bool]string{true: "memory", false: "disk"}[v.InMemory], map[bool]string{true: "read-only", false: "writable"}[v.ReadOnly])
			}
			if !strings.HasPrefix(got, tc.want) {
				t.Errorf("planned %s, want %s", got, tc.want)
			}
		})
	}
}

func TestOnlyUsedVolumesArePlanned(t *testing.T) {
	mount := func(name string) []v1.VolumeMount { return []v1.VolumeMount{{Name: name}} }
	pod := &v1.Pod{Spec: v1.PodSpec{
		InitContainers: []v1.Container{{VolumeMounts: mount("init")}},
		Containers: []v1.Container{{VolumeDevices: []v1.VolumeDevice{{Name: "dev"}}, Env: []v1.EnvVar{{
			ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{VolumeName: "env"}}}}}},
		EphemeralContainers: []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{VolumeMounts: mount("debug")}}},
	}}
	for _, name := range []string{"init", "dev", "env", "debug", "nobody"} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: name, VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	}
	volumes, err := Of(pod)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range volumes {
		names = append(names, v.Name)
	}
	if got := strings.Join(names, " "); got != "init dev env debug" {
		t.Errorf("planned %q", got)
	}
}

func TestNamesThatAreNoDirectories(t *testing.T) {
	for _, uid := range []string{"", ".", "..", "../x", "a/b", "a\x00b", "..x", "a\nb", strings.Repeat("x", 256)} {
		if ValidUID(uid) {
			t.Errorf("%q passes for a UID", uid)
		}
	}
	for _, uid := range []string{"5f3c", "a.b", "0b1b9c8e-2a8f-4a0e-9b2c-0d7c6a1f2e3d"} {
		if !ValidUID(uid) {
			t.Errorf("%q is refused", uid)
		}
	}
}

// TestLimitsOfTheWholePod: a container without a limit of its own has the pod's,
// before the node's; huge pages have none but their own.
func TestLimitsOfTheWholePod(t *testing.T) {
	pod := testPod(t, `downwardAPI: {items: [
		{path: own, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}},
		{path: pod, resourceFieldRef: {containerName: free, resource: limits.memory, divisor: 1Mi}},
		{path: node, resourceFieldRef: {containerName: free, resource: limits.cpu}},
		{path: huge, resourceFieldRef: {containerName: free, resource: limits.hugepages-2Mi, divisor: 1Mi}}]}`)
	pod.Spec.Resources = &v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse("300Mi")}}
	volumes, _ := Of(pod)
	node := v1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("1Gi"), "hugepages-2Mi": resource.MustParse("8Mi")}
	got, err := Facts{Pod: pod, Allocatable: node}.Render(volumes[0])
	if want := `huge 644 "0"; node 644 "4"; own 644 "100"; pod 644 "300"`; err != nil || show(got) != want {
		t.Errorf("rendered %s (%v), want %s", show(got), err, want)
	}
}

func TestPageSize(t *testing.T) {
	for _, tc := range []struct{ name, medium, spec, want string }{
		{"one size", "HugePages", `containers: [{resources: {limits: {hugepages-2Mi: 4Mi}}}, {resources: {limits: {hugepages-2Mi: 2Mi}}}]`, "2Mi"},
		{"init container", "HugePages", `initContainers: [{resources: {requests: {hugepages-1Gi: 1Gi}}}]`, "1Gi"},
		{"pod level", "HugePages", `resources: {limits: {hugepages-2Mi: 4Mi}}`, "2Mi"},
		{"two sizes", "HugePages", `containers: [{resources: {limits: {hugepages-2Mi: 4Mi}}}, {resources: {limits: {hugepages-1Gi: 1Gi}}}]`,
			"Invalid: medium: HugePages can't be used if container requests multiple huge page sizes"},
		{"one of two sizes", "HugePages-1Gi", `containers: [{resources: {limits: {hugepages-2Mi: 4Mi}}}, {resources: {limits: {hugepages-1Gi: 1Gi}}}]`, "1Gi"},
		{"none asked for", "HugePages", `containers: [{resources: {limits: {memory: 1Gi}}}]`,
			"Invalid: medium HugePages: hugePages storage requested, but there is no resource request for huge pages"},
		{"another asked for", "HugePages-1Gi", `containers: [{resources: {limits: {hugepages-2Mi: 4Mi}}}]`,
			"Invalid: medium HugePages-1Gi: hugePages storage requested, but there is no resource request for huge pages"},
		{"no size", "HugePages-big", `{}`, `Invalid: medium HugePages-big: "big" is not a size of huge pages`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var pod v1.Pod
			if err := yaml.UnmarshalStrict([]byte(tc.spec), &pod.Spec); err != nil {
				t.Fatal(err)
			}
			source := v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMedium(tc.medium)}}
			size, err := Facts{Pod: &pod}.PageSize(Volume{Source: source})
			got := ByteSize(size)
			var e *Error
			if errors.As(err, &e) {
				got = e.Code.String() + ": " + e.Error()
			}
			if !strings.HasPrefix(got, tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestImageVolumesAreTheRuntimes(t *testing.T) {
	pod := testPod(t, `image: {reference: busybox}`)
	if volumes, refused := Of(pod); len(volumes) > 0 || refused != nil {
		t.Errorf("planned %v, refused %v", volumes, refused)
	}
}

func TestMemorySize(t *testing.T) {
	const mi = 1 << 20
	for _, tc := range []struct {
		name        string
		allocatable string
		limits      []string // per container; empty: none
		podLimit    string
		sizeLimit   string
		want        int64
	}{
		{name: "nothing known", limits: []string{""}, want: 0},
		{name: "the node", allocatable: "1Gi", limits: []string{""}, want: 1024 * mi},
		{name: "the pod", allocatable: "1Gi", limits: []string{"100Mi", "50Mi"}, want: 150 * mi},
		{name: "one container without limit", allocatable: "1Gi", limits: []string{"100Mi", ""}, want: 1024 * mi},
		{name: "pod level", allocatable: "1Gi", limits: []string{""}, podLimit: "64Mi", want: 64 * mi},
		{name: "its own", allocatable: "1Gi", limits: []string{"100Mi"}, sizeLimit: "10Mi", want: 10 * mi},
		{name: "its own is larger", allocatable: "1Gi", limits: []string{"100Mi"}, sizeLimit: "10Gi", want: 100 * mi},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list := func(s string) v1.ResourceList {
				if s == "" {
					return nil
				}
				return v1.ResourceList{v1.ResourceMemory: resource.MustParse(s)}
			}
			pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
			for i, l := range tc.limits {
				pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: fmt.Sprint(i), Resources: v1.ResourceRequirements{Limits: list(l)}})
			}
			if tc.podLimit != "" {
				pod.Spec.Resources = &v1.ResourceRequirements{Limits: list(tc.podLimit)}
			}
			source := &v1.EmptyDirVolumeSource{}
			if tc.sizeLimit != "" {
				q := resource.MustParse(tc.sizeLimit)
				source.SizeLimit = &q
			}
			got := Facts{Pod: pod, Allocatable: list(tc.allocatable)}.MemorySize(Volume{Source: v1.VolumeSource{EmptyDir: source}})
			if got != tc.want {
				t.Errorf("%d bytes, want %d", got, tc.want)
			}
		})
	}
}

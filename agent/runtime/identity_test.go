package runtime

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

func clusterService(ns, name, ip string, ports ...v1.ServicePort) *v1.Service {
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: v1.ServiceSpec{ClusterIP: ip, Ports: ports}}
}

func TestServiceEnv(t *testing.T) {
	http, https := v1.ServicePort{Port: 80, Protocol: v1.ProtocolTCP}, v1.ServicePort{Name: "https-alt", Port: 443, Protocol: v1.ProtocolUDP}
	all := []*v1.Service{
		clusterService("ns", "web-app", "10.0.0.1", http, https), clusterService("ns", "six", "fd00::1", http), clusterService("ns", "headless", "None", http),
		clusterService("ns", "empty", "", http), clusterService("ns", "bare", "10.0.0.9"), clusterService("other", "foreign", "10.0.0.2", http), clusterService("default", "kubernetes", "10.0.0.3", https),
	}
	list := func(e *env) string {
		var out []string
		for _, n := range e.names {
			out = append(out, n+"="+e.values[n])
		}
		return strings.Join(out, " ")
	}
	master := "KUBERNETES_SERVICE_HOST=10.0.0.3 KUBERNETES_SERVICE_PORT=443 KUBERNETES_SERVICE_PORT_HTTPS_ALT=443 KUBERNETES_PORT=udp://10.0.0.3:443 " +
		"KUBERNETES_PORT_443_UDP=udp://10.0.0.3:443 KUBERNETES_PORT_443_UDP_PROTO=udp KUBERNETES_PORT_443_UDP_PORT=443 KUBERNETES_PORT_443_UDP_ADDR=10.0.0.3"
	six := " SIX_SERVICE_HOST=fd00::1 SIX_SERVICE_PORT=80 SIX_PORT=tcp://[fd00::1]:80 SIX_PORT_80_TCP=tcp://[fd00::1]:80 SIX_PORT_80_TCP_PROTO=tcp SIX_PORT_80_TCP_PORT=80 SIX_PORT_80_TCP_ADDR=fd00::1"
	web := " WEB_APP_SERVICE_HOST=10.0.0.1 WEB_APP_SERVICE_PORT=80 WEB_APP_SERVICE_PORT_HTTPS_ALT=443 WEB_APP_PORT=tcp://10.0.0.1:80 WEB_APP_PORT_80_TCP=tcp://10.0.0.1:80 " +
		"WEB_APP_PORT_80_TCP_PROTO=tcp WEB_APP_PORT_80_TCP_PORT=80 WEB_APP_PORT_80_TCP_ADDR=10.0.0.1 WEB_APP_PORT_443_UDP=udp://10.0.0.1:443 WEB_APP_PORT_443_UDP_PROTO=udp WEB_APP_PORT_443_UDP_PORT=443 WEB_APP_PORT_443_UDP_ADDR=10.0.0.1"
	if got := list(serviceEnv(all, "ns", true)); got != master+six+web {
		t.Errorf("links:\n%s\nwant\n%s", got, master+six+web)
	}
	if got := list(serviceEnv(all, "ns", false)); got != master {
		t.Errorf("no links: %s", got)
	}
	own := append([]*v1.Service{clusterService("ns", "kubernetes", "10.0.0.7", http)}, all...)
	for links, want := range map[bool]string{true: "10.0.0.7", false: "10.0.0.3"} {
		if got := serviceEnv(own, "ns", links).values["KUBERNETES_SERVICE_HOST"]; got != want {
			t.Errorf("own kubernetes, links %v: %s", links, got)
		}
	}
	// The lowest of all, and what references see last.
	f := facts{pod: &v1.Pod{}, objects: &host{maps: map[string]*v1.ConfigMap{"/m": {Data: map[string]string{"SIX_PORT": "mapped"}}}}, services: serviceEnv(all, "ns", true)}
	e, err := environment(f, &v1.Container{EnvFrom: []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "m"}}}},
		Env: []v1.EnvVar{{Name: "REF", Value: "$(KUBERNETES_SERVICE_HOST)"}, {Name: "KUBERNETES_SERVICE_HOST", Value: "mine"}}})
	if err != nil || e.values["REF"] != "10.0.0.3" || e.values["KUBERNETES_SERVICE_HOST"] != "mine" || e.values["SIX_PORT"] != "mapped" {
		t.Errorf("precedence: %v, %v", e, err)
	}
}

func TestServicesAreWaitedFor(t *testing.T) {
	for source, want := range map[pod.Source]string{pod.SourceAPI: "services have not yet been read at least once", pod.SourceFile: ""} {
		b := newBench(t)
		b.Services = func() ([]*v1.Service, bool) { return nil, false }
		b.must(pod.Action{Op: pod.OpCreateSandbox})
		b.must(pod.Action{Op: pod.OpPullImage, Container: "main"})
		b.must(pod.Action{Op: pod.OpMountVolumes})
		r := b.Do(t.Context(), pod.Desired{Pod: b.pod, Source: source}, b.observe(), pod.Record{}, pod.Action{Op: pod.OpStartContainer, Container: "main", SandboxID: b.seen.Sandboxes[0].ID})
		if want == "" && r.Err != nil || want != "" && (r.Err == nil || !strings.Contains(r.Err.Error(), want) || pod.KindOf(r.Err) != pod.Unavailable) {
			t.Errorf("%s: %v", source, r.Err)
		}
	}
}

func TestResourceFields(t *testing.T) {
	f := facts{pod: &v1.Pod{}, node: Node{Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("3500m"), v1.ResourceMemory: resource.MustParse("4Gi"), v1.ResourceEphemeralStorage: resource.MustParse("10Gi"), "hugepages-2Mi": resource.MustParse("8Mi")}}}
	c := &v1.Container{Name: "c", Resources: v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse("100M"), v1.ResourceCPU: resource.MustParse("0")}}}
	withPod := f
	withPod.pod = &v1.Pod{Spec: v1.PodSpec{Resources: &v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2")}}, InitContainers: []v1.Container{{Name: "i", Resources: v1.ResourceRequirements{Requests: quantities("7", "")}}}}}
	for _, tt := range []struct {
		f                            facts
		container, res, divisor, out string
	}{
		{f, "", "limits.memory", "1Mi", "96"}, {f, "", "limits.memory", "0", "100000000"},
		{f, "", "limits.cpu", "1", "4"}, {f, "", "limits.cpu", "1m", "3500"}, {withPod, "", "limits.cpu", "1", "2"},
		{f, "", "limits.ephemeral-storage", "1Gi", "10"}, {f, "", "limits.hugepages-2Mi", "1", "0"}, {f, "", "requests.memory", "1", "0"},
		{withPod, "i", "requests.cpu", "1", "7"}, {withPod, "x", "requests.cpu", "1", "container x not found"},
		{f, "", "limits.nvidia.com/gpu", "1", "unsupported container resource"}, {f, "", "cpu", "1", "unsupported container resource"},
	} {
		got, err := tt.f.resourceField(c, &v1.ResourceFieldSelector{ContainerName: tt.container, Resource: tt.res, Divisor: resource.MustParse(tt.divisor)})
		if err != nil {
			got = err.Error()
		}
		if got != tt.out && (err == nil || !strings.Contains(got, tt.out)) {
			t.Errorf("%s / %s: %s, want %s", tt.res, tt.divisor, got, tt.out)
		}
	}
	for in, want := range map[string]string{"10.0.0.1 10.0.0.2 fd::1 fd::2": "10.0.0.1 fd::1", "fd::1 10.0.0.1": "10.0.0.1 fd::1", "fd::1": "fd::1"} {
		if got := strings.Join(inFamilyOrder(strings.Fields(in), "192.0.2.1"), " "); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
	if got := strings.Join(inFamilyOrder([]string{"10.0.0.1", "fd::1"}, "fd::9"), " "); got != "fd::1 10.0.0.1" {
		t.Errorf("on a node of IPv6: %s", got)
	}
}

func TestAppArmor(t *testing.T) {
	of := func(kind v1.AppArmorProfileType, name string) *v1.AppArmorProfile {
		a := &v1.AppArmorProfile{Type: kind}
		if name != "" {
			a.LocalhostProfile = &name
		}
		return a
	}
	unconfined, local := of(v1.AppArmorProfileTypeUnconfined, ""), of(v1.AppArmorProfileTypeLocalhost, "mine")
	for i, tt := range []struct {
		pod        *v1.AppArmorProfile
		annotation string
		own        *v1.AppArmorProfile
		off        bool
		want       string
	}{
		{want: ""},
		{pod: unconfined, want: "unconfined"},
		{pod: unconfined, annotation: "runtime/default", want: "runtime/default"},
		{pod: unconfined, annotation: "localhost/x", own: local, want: "localhost/mine"},
		{annotation: "localhost/x", want: "localhost/x"},
		{annotation: "unconfined", own: of(v1.AppArmorProfileTypeRuntimeDefault, ""), want: "runtime/default"},
		{own: of(v1.AppArmorProfileTypeLocalhost, ""), want: "error"},
		{own: of("Other", ""), want: "error"},
		{off: true, own: local, want: "error"},
		{off: true, own: unconfined, want: ""},
	} {
		p := &v1.Pod{Spec: v1.PodSpec{SecurityContext: &v1.PodSecurityContext{AppArmorProfile: tt.pod}}}
		if tt.annotation != "" {
			p.Annotations = map[string]string{"container.apparmor.security.beta.kubernetes.io/c": tt.annotation}
		}
		got := "error"
		s, err := Config{Node: Node{AppArmor: !tt.off}}.containerSecurity(p, &v1.Container{Name: "c", SecurityContext: &v1.SecurityContext{AppArmorProfile: tt.own}}, imageUser{}, peers{})
		if err == nil {
			got = s.ApparmorProfile //lint:ignore SA1019 older runtimes read only this form
		} else if pod.KindOf(err) != pod.Invalid {
			t.Errorf("%d: %v", i, err)
		}
		if got != tt.want || tt.want == "" && err == nil && s.Apparmor != nil {
			t.Errorf("%d: %q, want %q (%v)", i, got, tt.want, err)
		}
	}
}

// ranges is a Userns in memory.
type ranges map[pod.UID]pod.IDMapping

func (r ranges) Allot(uid pod.UID) (pod.IDMapping, error) {
	if _, ok := r[uid]; !ok {
		r[uid] = pod.IDMapping{HostID: 65536, Length: 65536}
	}
	return r[uid], nil
}
func (r ranges) Adopt(uid pod.UID, m pod.IDMapping) error  { r[uid] = m; return nil }
func (r ranges) Mapping(uid pod.UID) (pod.IDMapping, bool) { m, ok := r[uid]; return m, ok }
func (r ranges) Release(uid pod.UID) error                 { delete(r, uid); return nil }
func (r ranges) String() string                            { return fmt.Sprint(map[pod.UID]pod.IDMapping(r)) }
func mapped(m []*cri.IDMapping) bool {
	return len(m) == 1 && m[0].HostId == 65536 && m[0].Length == 65536
}
func canDo(handlers ...*cri.RuntimeHandler) *cri.StatusResponse {
	return &cri.StatusResponse{RuntimeHandlers: handlers}
}

func TestUserNamespaces(t *testing.T) {
	b := newBench(t)
	own := ranges{}
	b.Userns, b.pod.Spec.HostUsers = own, ptr.To(false)
	b.cri.status = canDo(&cri.RuntimeHandler{Features: &cri.RuntimeHandlerFeatures{UserNamespaces: true}})
	id := b.up()
	c := b.cri.containers[string(id)]
	for what, o := range map[string]*cri.NamespaceOption{"sandbox": b.cri.sandboxes[c.PodSandboxId].Config.Linux.SecurityContext.NamespaceOptions, "container": c.Config.Linux.SecurityContext.NamespaceOptions} {
		if u := o.UsernsOptions; u.Mode != cri.NamespaceMode_POD || !mapped(u.Uids) || !mapped(u.Gids) {
			t.Errorf("%s: %v", what, u)
		}
	}
	for _, m := range c.Config.Mounts {
		if !mapped(m.UidMappings) || !mapped(m.GidMappings) {
			t.Errorf("mount %v is not shifted", m)
		}
	}
	delete(own, "u1") // the record was lost: it is learned from what runs
	b.observe()
	if m := own["u1"]; m.HostID != 65536 {
		t.Errorf("not adopted: %v", own)
	}
	b.must(pod.Action{Op: pod.OpCleanup})
	if len(own) != 0 {
		t.Errorf("not released: %v", own)
	}
}

func TestUnsupportedIsRefused(t *testing.T) {
	strict := v1.SupplementalGroupsPolicyStrict
	for what, tt := range map[string]struct {
		change  func(*v1.Pod)
		handler string
		status  *cri.StatusResponse
		none    bool
		want    string
	}{
		"users": {change: func(p *v1.Pod) { p.Spec.HostUsers = ptr.To(false) }, want: "can't set spec.hostUsers: false, runtime does not support user namespaces: an OCI runtime"},
		"users, told why": {change: func(p *v1.Pod) { p.Spec.HostUsers = ptr.To(false) },
			status: &cri.StatusResponse{Info: map[string]string{"info": `{"noUserNamespaces":{"":"crun 1.8.1 is too old"}}`}}, want: "user namespaces: crun 1.8.1 is too old"},
		"users, other handler": {change: func(p *v1.Pod) { p.Spec.HostUsers = ptr.To(false) }, handler: "kata",
			status: canDo(&cri.RuntimeHandler{Features: &cri.RuntimeHandlerFeatures{UserNamespaces: true}}), want: `RuntimeClass handler "kata" does not support user namespaces`},
		"users, no ranges":          {change: func(p *v1.Pod) { p.Spec.HostUsers = ptr.To(false) }, none: true, want: "this node allots no user namespaces"},
		"users, the node's network": {change: func(p *v1.Pod) { p.Spec.HostUsers, p.Spec.HostNetwork = ptr.To(false), true }, want: "cannot have a user namespace of its own"},
		"groups":                    {change: func(p *v1.Pod) { p.Spec.SecurityContext.SupplementalGroupsPolicy = &strict }, want: "SupplementalGroupsPolicy=Strict is not supported in this node"},
	} {
		b := newBench(t)
		tt.change(b.pod)
		if b.cri.status = tt.status; !tt.none {
			b.Userns = ranges{}
		}
		r := b.Do(t.Context(), pod.Desired{Pod: b.pod, RuntimeHandler: tt.handler}, b.seen, pod.Record{}, pod.Action{Op: pod.OpCreateSandbox})
		if r.Err == nil || !strings.Contains(r.Err.Error(), tt.want) || pod.KindOf(r.Err) != pod.Invalid || r.Err.(*pod.Error).Reason != pod.FailedCreatePodSandBox {
			t.Errorf("%s: %v", what, r.Err)
		}
		if b.cri.count("RunPodSandbox") != 0 {
			t.Errorf("%s: a sandbox was made", what)
		}
	}
}

func TestRuntimeHandler(t *testing.T) {
	b := newBench(t)
	if r := b.Do(t.Context(), pod.Desired{Pod: b.pod, RuntimeHandler: "gvisor"}, b.seen, pod.Record{}, pod.Action{Op: pod.OpCreateSandbox}); r.Err != nil {
		t.Fatal(r.Err)
	}
	for _, s := range b.cri.sandboxes {
		if s.RuntimeHandler != "gvisor" {
			t.Errorf("handler %q", s.RuntimeHandler)
		}
	}
}

func TestImageVolume(t *testing.T) {
	b := newBench(t)
	b.cri.remote["example.org/files:1"] = &cri.Image{Id: "sha256:f"}
	b.pod.Spec.Volumes = []v1.Volume{{Name: "files", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "example.org/files:1", PullPolicy: v1.PullIfNotPresent}}}}
	c := &b.pod.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: "files", MountPath: "/files", SubPathExpr: "d/$(WHAT)"})
	b.must(pod.Action{Op: pod.OpCreateSandbox})
	b.must(pod.Action{Op: pod.OpMountVolumes})
	b.must(pod.Action{Op: pod.OpPullImage, Container: "main"})
	start := pod.Action{Op: pod.OpStartContainer, Container: "main", SandboxID: b.observe().Sandboxes[0].ID}
	if r := b.do(start); r.Err == nil || !strings.Contains(r.Err.Error(), `image "example.org/files:1" of volume "files" is not there`) {
		t.Errorf("without the image: %v", r.Err)
	}
	pull := pod.Action{Slot: pod.VolumeImageSlot("files"), Op: pod.OpPullImage, Volume: "files"}
	if r := b.must(pull); !r.Image.Pulled || r.Image.Ref != "sha256:f" {
		t.Errorf("pulled %+v", r.Image)
	}
	if r := b.must(pull); r.Image.Pulled {
		t.Error("an image that is there was pulled")
	}
	if r := b.do(pod.Action{Op: pod.OpPullImage, Volume: "data"}); pod.KindOf(r.Err) != pod.Invalid {
		t.Errorf("a volume without an image: %v", r.Err)
	}
	b.cri.fail["CreateContainer"] = status.Error(codes.Internal, "ImageVolumeMountFailed: no such path")
	if r := b.do(start); r.Err == nil || r.Err.(*pod.Error).Reason != "ImageVolumeMountFailed" {
		t.Errorf("the runtime cannot mount it: %v", r.Err)
	}
	delete(b.cri.fail, "CreateContainer")
	b.must(start)
	for _, made := range b.cri.containers {
		m := made.Config.Mounts[2]
		if m.HostPath != "" || m.ContainerPath != "/files" || m.Image.GetImage() != "sha256:f" || m.Image.UserSpecifiedImage != "example.org/files:1" || m.ImageSubPath != "d/sh" || !m.Readonly {
			t.Errorf("mount %v", m)
		}
	}
}

func TestRelabelling(t *testing.T) {
	p := &v1.Pod{Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/etc"}}}}}}
	m := mounting{pod: p, subPath: (&host{}).SubPath, volumes: map[string]pod.Volume{"v": {HostPath: "/v"}, "host": {HostPath: "/etc"}},
		ctr: &v1.Container{VolumeMounts: []v1.VolumeMount{{Name: "host", MountPath: "/h"}, {Name: "v", MountPath: "/a"}, {Name: "v", MountPath: "/b", SubPath: "x"}}}}
	all, err := m.mounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if all[0].SelinuxRelabel || !all[1].SelinuxRelabel || all[2].SelinuxRelabel {
		t.Errorf("the node's files, or one volume twice, would be relabelled: %v", all)
	}
}

func TestDNSIsToldOnce(t *testing.T) {
	b := newBench(t)
	told := func() (reasons []string) {
		for _, e := range b.events {
			reasons = append(reasons, string(e.Reason))
		}
		b.events = nil
		return reasons
	}
	make := func(source pod.Source) {
		t.Helper()
		if r := b.Do(t.Context(), pod.Desired{Pod: b.pod, Source: source}, b.seen, pod.Record{}, pod.Action{Op: pod.OpCreateSandbox}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	make(pod.SourceFile)
	if got := told(); len(got) != 0 {
		t.Errorf("ClusterFirst without a cluster: %v", got)
	}
	make(pod.SourceAPI)
	make(pod.SourceAPI)
	if got := told(); !slices.Equal(got, []string{"MissingClusterDNS"}) {
		t.Errorf("in a cluster: %v", got)
	}
	b.pod.Spec.DNSPolicy, b.pod.Spec.DNSConfig = v1.DNSNone, &v1.PodDNSConfig{Nameservers: []string{"1", "2", "3", "4"}, Searches: []string{"ok.example", strings.Repeat("a.", 127)}}
	make(pod.SourceAPI)
	make(pod.SourceAPI)
	if got := told(); !slices.Equal(got, []string{"DNSConfigForming", "DNSConfigForming"}) {
		t.Errorf("over the limits: %v", got)
	}
	b.must(pod.Action{Op: pod.OpCleanup})
	b.pod.Spec.DNSPolicy, b.pod.Spec.DNSConfig = v1.DNSClusterFirstWithHostNet, nil
	make(pod.SourceFile)
	if got := told(); !slices.Equal(got, []string{"MissingClusterDNS"}) {
		t.Errorf("asked for by name: %v", got)
	}
	if got := b.CheckResolvConf(); len(got) != 0 {
		t.Errorf("a short resolv.conf: %v", got)
	}
	long := "search" + strings.Repeat(" "+strings.Repeat("x", 80), 30) + strings.Repeat("\nnameserver 192.0.2.1", 4)
	if err := os.WriteFile(b.cfg.Node.ResolvConf, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]int{"": 2, "cluster.test": 3} {
		if b.cfg.ClusterDomain = domain; len(b.CheckResolvConf()) != want {
			t.Errorf("a long resolv.conf, domain %q: %v", domain, b.CheckResolvConf())
		}
	}
	b.cfg.NoHostDNS, b.pod.Spec.DNSPolicy = true, v1.DNSDefault
	if d, err := b.hostDNS(b.pod); err != nil || fmt.Sprint(d.Servers, d.Searches) != "[127.0.0.1] [.]" {
		t.Errorf("without the node's resolv.conf: %v, %v", d, err)
	}
}

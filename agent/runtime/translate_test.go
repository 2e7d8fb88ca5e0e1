package runtime

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "a", "B": "$(A)", "EMPTY": ""}
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "a", "x$(A)y$(A)": "xaya", "$$(A)": "$(A)", "$$$(A)": "$a", "$$$$(A)": "$$(A)", "$(B)": "$(A)",
		"$(NO)": "$(NO)", "$(A": "$(A", "$": "$", "$x": "$x", "a$": "a$", "$(EMPTY)!": "!", "$()": "$()", "$(A)$(NO)$(A)": "a$(NO)a",
	} {
		if got := expand(in, values); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got, err := expandSubPath("x/$(A)/y", values); err != nil || got != "x/a/y" {
		t.Errorf("subPathExpr: %q, %v", got, err)
	}
	if got, err := expandSubPath("$$(NO)/$$$$(A)", values); err != nil || got != "$(NO)/$$(A)" {
		t.Errorf("escaped: %q, %v", got, err)
	}
	for _, bad := range []string{"$(NO)", "$(EMPTY)", "$(A)/$(NO)/x", "$$$(NO)", "$()"} {
		if _, err := expandSubPath(bad, values); err == nil || !strings.Contains(err.Error(), "missing value for") {
			t.Errorf("subPathExpr %q: %v", bad, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	h := &host{maps: map[string]*v1.ConfigMap{"ns/cm": {Data: map[string]string{"k": "from-cm", "j": "other"}}}, secrets: map[string]*v1.Secret{"ns/s": {Data: map[string][]byte{"p": []byte("word")}}}}
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", Labels: map[string]string{"a/b": "label"}, Annotations: map[string]string{"c": "note"}},
		Spec: v1.PodSpec{ServiceAccountName: "sa"}}
	f := facts{pod: p, podIPs: []string{"10.0.0.1", "fd::1"}, node: Node{Name: "n", IPs: []string{"192.0.2.1"}, Allocatable: v1.ResourceList{v1.ResourceMemory: resource.MustParse("4Gi")}}, objects: h}
	ref := func(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }
	field := func(path string) *v1.EnvVarSource {
		return &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: path}}
	}
	res := func(what, divisor string) *v1.EnvVarSource {
		return &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: what, Divisor: resource.MustParse(divisor)}}
	}
	c := &v1.Container{
		Name: "c", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1500m")}},
		EnvFrom: []v1.EnvFromSource{
			{Prefix: "X_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("cm")}},
			{SecretRef: &v1.SecretEnvSource{LocalObjectReference: ref("s")}},
			{SecretRef: &v1.SecretEnvSource{LocalObjectReference: ref("none"), Optional: ptr.To(true)}},
		},
		Env: []v1.EnvVar{
			{Name: "X_k", Value: "own"}, {Name: "REF", Value: "$(X_k)-$(LATER)"}, {Name: "LATER", Value: "1"}, {Name: "EMPTY"},
			{Name: "LABEL", ValueFrom: field("metadata.labels['a/b']")}, {Name: "NOTE", ValueFrom: field("metadata.annotations['c']")},
			{Name: "WHO", ValueFrom: field("metadata.name")}, {Name: "NODE", ValueFrom: field("spec.nodeName")}, {Name: "SA", ValueFrom: field("spec.serviceAccountName")},
			{Name: "IPS", ValueFrom: field("status.podIPs")}, {Name: "HOST", ValueFrom: field("status.hostIP")},
			{Name: "CPU", ValueFrom: res("requests.cpu", "1")}, {Name: "MILLI", ValueFrom: res("requests.cpu", "1m")}, {Name: "MEM", ValueFrom: res("limits.memory", "1Mi")},
			{Name: "KEY", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: ref("cm"), Key: "j"}}},
			{Name: "SECRET", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: ref("s"), Key: "p"}}},
			{Name: "MAYBE", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: ref("s"), Key: "q", Optional: ptr.To(true)}}},
		},
	}
	e, err := environment(f, c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, kv := range e.cri() {
		got = append(got, kv.Key+"="+string(kv.Value))
	}
	want := "X_j=other X_k=own p=word REF=own-$(LATER) LATER=1 EMPTY= LABEL=label NOTE=note WHO=p NODE=n SA=sa IPS=10.0.0.1,fd::1 HOST=192.0.2.1 CPU=2 MILLI=1500 MEM=4096 KEY=other SECRET=word"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	for text, source := range map[string]*v1.EnvVarSource{
		"couldn't find key no in ConfigMap ns/cm": {ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: ref("cm"), Key: "no"}},
		`secret "no" not found`:                   {SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: ref("no"), Key: "p"}},
		"fieldPath":                               field("status.phase"),
		"unsupported container resource":          res("what.cpu", "1"),
		"not known to this agent":                 {},
	} {
		_, err := environment(f, &v1.Container{Env: []v1.EnvVar{{Name: "E", ValueFrom: source}}})
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSecurity(t *testing.T) {
	p := &v1.Pod{Spec: v1.PodSpec{SecurityContext: &v1.PodSecurityContext{RunAsUser: ptr.To(int64(5)), RunAsGroup: ptr.To(int64(6)), FSGroup: ptr.To(int64(7)), SupplementalGroups: []int64{8, 9},
		SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeUnconfined}}}}
	c := &v1.Container{Name: "c", SecurityContext: &v1.SecurityContext{
		RunAsUser: ptr.To(int64(1000)), Privileged: ptr.To(true), ReadOnlyRootFilesystem: ptr.To(true), AllowPrivilegeEscalation: ptr.To(false),
		Capabilities:   &v1.Capabilities{Add: []v1.Capability{"NET_ADMIN"}, Drop: []v1.Capability{"ALL"}},
		SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr.To("a.json")},
	}}
	cfg := New(Config{RootDir: "/root-dir", SeccompDefault: true}, Deps{}).cfg
	s, err := cfg.containerSecurity(p, c, imageUser{}, peers{})
	if err != nil {
		t.Fatal(err)
	}
	if s.RunAsUser.Value != 1000 || s.RunAsGroup.Value != 6 || !s.Privileged || !s.ReadonlyRootfs || !s.NoNewPrivs || !slices.Equal(s.SupplementalGroups, []int64{7, 8, 9}) ||
		s.Capabilities.AddCapabilities[0] != "NET_ADMIN" || s.Capabilities.DropCapabilities[0] != "ALL" || s.Seccomp.LocalhostRef != "/root-dir/seccomp/a.json" ||
		!slices.Contains(s.MaskedPaths, "/proc/kcore") || !slices.Contains(s.ReadonlyPaths, "/proc/sys") {
		t.Errorf("%+v", s)
	}
	if _, err := cfg.seccomp(&v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr.To("../../etc/x")}); err == nil {
		t.Error("a profile outside of the directory was taken")
	}
	for def, want := range map[bool]cri.SecurityProfile_ProfileType{true: cri.SecurityProfile_RuntimeDefault, false: cri.SecurityProfile_Unconfined} {
		if got, _ := (Config{SeccompDefault: def}).seccomp(nil); got.ProfileType != want {
			t.Errorf("default %v: %v", def, got)
		}
	}
	plain := &v1.Container{Name: "c", SecurityContext: &v1.SecurityContext{ProcMount: ptr.To(v1.UnmaskedProcMount)}}
	s, err = cfg.containerSecurity(&v1.Pod{}, plain, imageUser{name: "www"}, peers{target: "target"})
	if err != nil || s.RunAsUsername != "www" || s.NoNewPrivs || len(s.MaskedPaths)+len(s.ReadonlyPaths) != 0 || s.NamespaceOptions.Pid != cri.NamespaceMode_TARGET || s.NamespaceOptions.TargetId != "target" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestNonRoot(t *testing.T) {
	uid := func(n int64) imageUser { return imageUser{uid: &n} }
	tests := []struct {
		runAs *int64
		user  imageUser
		text  string
	}{
		{ptr.To(int64(0)), imageUser{}, "container's runAsUser breaks non-root policy"},
		{ptr.To(int64(1)), uid(0), ""},
		{nil, uid(0), "image will run as root"},
		{nil, imageUser{}, "image will run as root"},
		{nil, uid(10), ""},
		{nil, imageUser{name: "www"}, "image has non-numeric user (www), cannot verify user is non-root"},
		{nil, uid(-1), "invalid user id (-1)"},
	}
	for i, tt := range tests {
		err := nonRoot(&v1.Pod{}, &v1.Container{}, v1.SecurityContext{RunAsNonRoot: ptr.To(true), RunAsUser: tt.runAs}, tt.user)
		if (err != nil) != (tt.text != "") || err != nil && !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%d: %v, want %q", i, err, tt.text)
		}
	}
}

func TestNamespaces(t *testing.T) {
	for what, tt := range map[string]struct {
		spec v1.PodSpec
		want string
	}{
		"plain":  {v1.PodSpec{}, "POD CONTAINER POD"},
		"host":   {v1.PodSpec{HostNetwork: true, HostPID: true, HostIPC: true}, "NODE NODE NODE"},
		"shared": {v1.PodSpec{ShareProcessNamespace: ptr.To(true)}, "POD POD POD"},
	} {
		n := namespaces(&v1.Pod{Spec: tt.spec}, nil)
		if got := fmt.Sprint(n.Network, " ", n.Pid, " ", n.Ipc); got != tt.want || n.UsernsOptions.Mode != cri.NamespaceMode_NODE {
			t.Errorf("%s: %s, want %s", what, got, tt.want)
		}
	}
}

func quantities(cpu, memory string) v1.ResourceList {
	l := v1.ResourceList{}
	if cpu != "" {
		l[v1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[v1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func TestResources(t *testing.T) {
	cfg := New(Config{Node: Node{Memory: 4 << 30}}, Deps{}).cfg
	rr := func(requests, limits v1.ResourceList) v1.ResourceRequirements {
		return v1.ResourceRequirements{Requests: requests, Limits: limits}
	}
	always := v1.ContainerRestartPolicyAlways
	sidecar := &v1.Pod{Spec: v1.PodSpec{InitContainers: []v1.Container{{Name: "c", RestartPolicy: &always, Resources: rr(quantities("1m", "1Mi"), nil)}}, Containers: []v1.Container{{Name: "m", Resources: rr(quantities("", "2Gi"), nil)}}}}
	one := func(r v1.ResourceRequirements) *v1.Pod {
		return &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Resources: r}}}}
	}
	podLimit := one(rr(nil, nil))
	podLimit.Spec.Resources = &v1.ResourceRequirements{Limits: quantities("2", "1Gi"), Requests: quantities("1", "1Gi")}
	critical := one(rr(nil, nil))
	critical.Spec.PriorityClassName = "system-node-critical"
	tests := []struct {
		what                             string
		pod                              *v1.Pod
		shares, quota, memory, oom, swap int64
	}{
		{"nothing", one(rr(nil, nil)), 2, 0, 0, 1000, 0},
		{"guaranteed", one(rr(quantities("1", "1Gi"), quantities("1", "1Gi"))), 1024, 100000, 1 << 30, -997, 1 << 30},
		{"limit alone", one(rr(nil, quantities("500m", ""))), 512, 50000, 0, 999, 0},
		{"burstable", one(rr(quantities("100m", "1Gi"), nil)), 102, 0, 0, 750, 0},
		{"burstable, asks for all", one(rr(quantities("", "4Gi"), nil)), 2, 0, 0, 3, 0},
		{"sidecar of a big one", sidecar, 2, 0, 0, 500, 0},
		{"limit of the pod", podLimit, 2048, 200000, 1 << 30, 750, 1 << 30},
		{"critical", critical, 2, 0, 0, -997, 0},
	}
	cfg.Node.SwapAccounting = true
	for _, tt := range tests {
		r := cfg.containerResources(tt.pod, containerOf(tt.pod, "c"))
		if r.CpuShares != tt.shares || r.CpuQuota != tt.quota || r.MemoryLimitInBytes != tt.memory || r.OomScoreAdj != tt.oom || r.MemorySwapLimitInBytes != tt.swap || r.Unified != nil {
			t.Errorf("%s: %+v", tt.what, r)
		}
	}
	cfg.Node.CgroupV2, cfg.NoCPUQuota, cfg.pageSizes = true, true, nil
	huge := one(rr(nil, v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), "hugepages-2Mi": resource.MustParse("4Mi")}))
	r := cfg.containerResources(huge, containerOf(huge, "c"))
	if r.Unified["memory.oom.group"] != "1" || r.CpuQuota != 0 || len(r.HugepageLimits) != 1 || r.HugepageLimits[0].PageSize != "2MB" || r.HugepageLimits[0].Limit != 4<<20 {
		t.Errorf("v2: %+v", r)
	}
}

func TestMounts(t *testing.T) {
	bi, on := v1.MountPropagationBidirectional, v1.RecursiveReadOnlyEnabled
	m := mounting{pod: &v1.Pod{}, env: map[string]string{"N": "x"}, subPath: (&host{}).SubPath, volumes: map[string]pod.Volume{"v": {HostPath: "/v"}}}
	tests := []struct {
		mount v1.VolumeMount
		want  string
	}{
		{v1.VolumeMount{Name: "v", MountPath: "/a"}, "/v:/a false PROPAGATION_PRIVATE"},
		{v1.VolumeMount{Name: "v", MountPath: "rel", ReadOnly: true}, "/v:/rel true PROPAGATION_PRIVATE"},
		{v1.VolumeMount{Name: "v", MountPath: "/a", MountPropagation: &bi}, "/v:/a false PROPAGATION_BIDIRECTIONAL"},
		{v1.VolumeMount{Name: "v", MountPath: "/a", SubPathExpr: "d/$(N)"}, "/sub/v/c/0/d/x:/a false PROPAGATION_PRIVATE"},
		{v1.VolumeMount{Name: "v", MountPath: "/a", SubPath: "/abs"}, "error"},
		{v1.VolumeMount{Name: "v", MountPath: "/a", RecursiveReadOnly: &on}, "error"},
		{v1.VolumeMount{Name: "v", MountPath: "/a", RecursiveReadOnly: &on, ReadOnly: true}, "error"},
		{v1.VolumeMount{Name: "w", MountPath: "/a"}, "error"},
	}
	for i, tt := range tests {
		m.ctr = &v1.Container{Name: "c", VolumeMounts: []v1.VolumeMount{tt.mount}}
		got := "error"
		if all, err := m.mounts(t.Context()); err == nil {
			got = fmt.Sprintf("%s:%s %v %v", all[0].HostPath, all[0].ContainerPath, all[0].Readonly, all[0].Propagation)
		} else if pod.KindOf(err) == pod.Internal {
			t.Errorf("%d: %v has no kind", i, err)
		}
		if got != tt.want {
			t.Errorf("%d: %s, want %s", i, got, tt.want)
		}
	}
	m.recursive, m.ctr = true, &v1.Container{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "v", MountPath: "/a", RecursiveReadOnly: &on, ReadOnly: true}}}
	if all, err := m.mounts(t.Context()); err != nil || !all[0].RecursiveReadOnly {
		t.Errorf("recursive: %+v, %v", all, err)
	}
}

func TestDNS(t *testing.T) {
	node := parseResolvConf("# c\nnameserver 1.1.1.1 # x\nnameserver 2.2.2.2\nsearch old\nsearch a.example. b.example\noptions ndots:2 rotate\noptions ndots:3\nbroken\n")
	if got := fmt.Sprint(node.Servers, node.Searches, node.Options); got != "[1.1.1.1 2.2.2.2] [a.example b.example] [ndots:3 rotate]" {
		t.Fatalf("parsed %s", got)
	}
	cluster := Config{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local"}
	more := &v1.PodDNSConfig{Nameservers: []string{"9.9.9.9"}, Searches: []string{"a.example", "c.example"}, Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("1")}, {Name: "debug"}}}
	tests := []struct {
		cfg  Config
		spec v1.PodSpec
		want string
	}{
		{Config{}, v1.PodSpec{DNSPolicy: v1.DNSClusterFirst}, "[1.1.1.1 2.2.2.2] [a.example b.example] [ndots:3 rotate]"},
		{Config{}, v1.PodSpec{DNSPolicy: v1.DNSDefault, DNSConfig: more}, "[1.1.1.1 2.2.2.2 9.9.9.9] [a.example b.example c.example] [ndots:1 rotate debug]"},
		{Config{}, v1.PodSpec{DNSPolicy: v1.DNSNone, DNSConfig: more}, "[9.9.9.9] [a.example c.example] [ndots:1 debug]"},
		{cluster, v1.PodSpec{DNSPolicy: v1.DNSClusterFirst}, "[10.96.0.10] [ns.svc.cluster.local svc.cluster.local cluster.local a.example b.example] [ndots:5]"},
		{cluster, v1.PodSpec{DNSPolicy: v1.DNSClusterFirst, HostNetwork: true}, "[1.1.1.1 2.2.2.2] [a.example b.example] [ndots:3 rotate]"},
		{cluster, v1.PodSpec{DNSPolicy: v1.DNSClusterFirstWithHostNet, HostNetwork: true}, "[10.96.0.10] [ns.svc.cluster.local svc.cluster.local cluster.local a.example b.example] [ndots:5]"},
	}
	for i, tt := range tests {
		d, warnings := tt.cfg.dnsConfig(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: tt.spec}, node)
		if got := fmt.Sprint(d.Servers, d.Searches, d.Options); got != tt.want || len(warnings) != 0 {
			t.Errorf("%d: %s %v, want %s", i, got, warnings, tt.want)
		}
	}
	var long []string
	for i := range 40 {
		long = append(long, fmt.Sprintf("%d.%s", i, strings.Repeat("x", 90)))
	}
	d, warnings := Config{}.dnsConfig(&v1.Pod{Spec: v1.PodSpec{DNSPolicy: v1.DNSNone, DNSConfig: &v1.PodDNSConfig{Nameservers: []string{"1", "2", "3", "4"}, Searches: long}}}, node)
	if len(d.Servers) != 3 || len(strings.Join(d.Searches, " ")) > 2048 || len(d.Searches) < 20 || len(warnings) != 2 || !strings.HasSuffix(warnings[0], "the applied nameserver line is: 1 2 3") {
		t.Errorf("limits: %v %d %v", d.Servers, len(d.Searches), warnings)
	}
}

func TestHostnameAndHosts(t *testing.T) {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("a", 62) + "-b", Namespace: "ns"}}
	if got, _ := (Config{}).sandboxHostname(p); got != strings.Repeat("a", 62) {
		t.Errorf("long name became %q", got)
	}
	p.Spec.Hostname, p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "h", "sub", ptr.To(true)
	if got, err := (Config{}).sandboxHostname(p); got != "h.sub.ns.svc.cluster.local" || err != nil {
		t.Errorf("FQDN %q, %v", got, err)
	}
	p.Spec.Subdomain = strings.Repeat("s", 60)
	if _, err := (Config{}).sandboxHostname(p); err == nil || !strings.Contains(err.Error(), "is too long (64 characters is the max, ") {
		t.Errorf("too long: %v", err)
	}
	p.Spec.HostNetwork = true
	if got, err := (Config{}).sandboxHostname(p); got != "" || err != nil {
		t.Errorf("host network: %q, %v", got, err)
	}
	got := hostsContent([]string{"10.0.0.1"}, "h", "sub.ns", []v1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"x", "y"}}})
	if !strings.HasSuffix(got, "fe00::2\tip6-allrouters\n10.0.0.1\th.sub.ns\th\n\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n") {
		t.Errorf("hosts %q", got)
	}
	if got := nodeHostsContent("n\n", nil); got != "# Kubernetes-managed hosts file (host network).\nn\n" {
		t.Errorf("node's hosts %q", got)
	}
	own := &v1.Container{VolumeMounts: []v1.VolumeMount{{MountPath: "/etc/hosts"}}}
	if managesHosts(p, own, nil) || !managesHosts(p, &v1.Container{}, nil) || managesHosts(&v1.Pod{}, &v1.Container{}, nil) {
		t.Error("managesHosts is wrong")
	}
}

func TestSandboxConfig(t *testing.T) {
	b := newBench(t)
	p := b.pod
	p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: "net/core/somaxconn", Value: "9"}}, RunAsUser: ptr.To(int64(4))}
	p.Spec.Overhead = quantities("100m", "1Mi")
	p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, p.Spec.Containers[0].Ports[0], v1.ContainerPort{ContainerPort: 53, Protocol: v1.ProtocolUDP})
	p.Spec.InitContainers = []v1.Container{{Name: "i", Ports: []v1.ContainerPort{{ContainerPort: 1}}, SecurityContext: &v1.SecurityContext{Privileged: ptr.To(true)}}}
	s, err := b.cfg.sandboxConfig(p, sandboxSettings{attempt: 2, source: pod.SourceHTTP, parent: "/kubepods/podu1", dns: &cri.DNSConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Metadata.Attempt != 2 || s.Hostname != "web" || s.LogDirectory != b.cfg.LogDir+"/default_web_u1" || s.Linux.CgroupParent != "/kubepods/podu1" || !s.Linux.SecurityContext.Privileged ||
		s.Linux.Sysctls["net.core.somaxconn"] != "9" || s.Linux.Overhead.CpuShares != 102 || s.Linux.SecurityContext.RunAsUser.Value != 4 || s.Linux.SecurityContext.Seccomp.ProfileType != cri.SecurityProfile_RuntimeDefault {
		t.Errorf("%+v", s)
	}
	if len(s.PortMappings) != 2 || s.PortMappings[0].HostPort != 8080 || s.PortMappings[1].Protocol != cri.Protocol_UDP {
		t.Errorf("ports %v", s.PortMappings)
	}
	if s.Annotations[pod.AnnotationSource] != "http" || s.Annotations["note"] != "x" || s.Labels[labelPodUID] != "u1" || s.Labels["app"] != "web" || len(p.Annotations) != 1 {
		t.Errorf("labels %v, annotations %v", s.Labels, s.Annotations)
	}
}

func TestCredentialMatch(t *testing.T) {
	tests := []struct {
		pattern, image string
		want           bool
	}{
		{"registry.example", "registry.example/a/b:1", true},
		{"https://registry.example/v2/", "registry.example/a", true},
		{"registry.example", "other.example/a", false},
		{"*.example", "registry.example/a", true},
		{"*.example", "a.registry.example/a", false},
		{"registry.example:5000", "registry.example/a", false},
		{"registry.example:5000", "registry.example:5000/a", true},
		{"registry.example/team", "registry.example/team/a", true},
		{"registry.example/team", "registry.example/other/a", false},
		{"https://index.docker.io/v1/", "busybox", true},
		{"docker.io/library", "busybox", true},
		{"[", "busybox", false},
	}
	for _, tt := range tests {
		if got := matchesImage(tt.pattern, repository(tt.image)); got != tt.want {
			t.Errorf("%s for %s: %v", tt.pattern, tt.image, got)
		}
	}
	got := parseDockerConfig([]byte(`{"a.example":{"auth":"dTpwOng="},"b.example":{"auth":"!"},"c.example":{"identitytoken":"t"}}`))
	if len(got) != 2 || got[0].auth.Username != "u" || got[0].auth.Password != "p:x" || got[1].auth.IdentityToken != "t" {
		t.Errorf("parsed %v", got)
	}
	if got := parseDockerConfig([]byte("not json")); got != nil {
		t.Errorf("parsed %v", got)
	}
}

package ocispec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// base is a plain container on a cgroup v2 host that grants everything.
func base() Input {
	return Input{
		ID: "c1", Rootfs: "/run/berth/containers/c1/rootfs",
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Command: []string{"/bin/web"}, Args: []string{"-v"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				},
			},
		},
		Sandbox: Sandbox{
			ID: "s1", Name: "pod", Namespace: "default", UID: "u1", Hostname: "pod", CgroupParent: "/kubepods/podu1",
			NetworkNS: "/proc/7/fd/10", IPCNS: "/proc/7/fd/11", UTSNS: "/proc/7/fd/12",
			ShmPath: "/run/s1/shm", HostnamePath: "/run/s1/hostname", ResolvConfPath: "/run/s1/resolv.conf",
		},
		Image: imagespec.ImageConfig{Env: []string{"LANG=C", "A=image"}, Entrypoint: []string{"/entry"}, Cmd: []string{"default"}, WorkingDir: "/srv"},
		User:  User{UID: 101, GID: 102, Groups: []uint32{102}, Home: "/srv"},
		Host: Host{
			CgroupV2: true, Controllers: map[string]bool{"cpu": true, "memory": true, "pids": true}, SwapAccounting: true,
			HugePageSizes: []string{"2MB"}, Capabilities: slices.Clone(knownCapabilities), CanLowerOOMScore: true, CanRaiseRlimits: true,
			RecursiveReadOnly: true, Seccomp: true,
		},
	}
}

func sec(in *Input) *runtimeapi.LinuxContainerSecurityContext { return in.Config.Linux.SecurityContext }

func TestGolden(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"plain": func(*Input) {},
		"full": func(in *Input) {
			in.Config.Tty = true
			in.Config.WorkingDir = "/work/../data"
			in.Config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("pod")}, {Key: "B", Value: []byte("2")}}
			in.Config.Annotations = map[string]string{"run.oci.keep_original_groups": "1", "org.systemd.property.ExecStart": "'evil'"}
			in.Config.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/data/deep", HostPath: "/vol/b", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
				{ContainerPath: "/data", HostPath: "/vol/a", Readonly: true},
				{ContainerPath: "/ro", HostPath: "/vol/c", Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/etc/hosts", HostPath: "/pods/u1/etc-hosts"},
				{ContainerPath: "/shared", HostPath: "/vol/d", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
			}
			in.Devices = []Device{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666, Permissions: "rw"}}
			in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}}
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0-1", MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
				Unified:        map[string]string{"memory.high": "50000000"},
			}
			s := sec(in)
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"mknod", "CAP_KILL"},
				AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
			s.NoNewPrivs, s.ReadonlyRootfs = true, true
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
			s.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
			in.TargetPIDNamespace = "/proc/99/ns/pid"
			in.Host.AppArmor, in.Host.AppArmorDefault = true, "berth-default"
			in.ProcessLabel, in.MountLabel = "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"
		},
		"privileged": func(in *Input) {
			s := sec(in)
			s.Privileged = true
			s.Seccomp = &runtimeapi.SecurityProfile{}
			s.MaskedPaths = []string{"/proc/kcore"}
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
			in.Sandbox.UTSNS = ""
			in.Devices = []Device{{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11, Mode: 0o644, Permissions: "rwm"}}
			in.Host.Capabilities = []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}
		},
		"v1-systemd-poor": func(in *Input) {
			in.Host = Host{SystemdCgroup: true, Controllers: map[string]bool{"memory": true}, Capabilities: []string{"CAP_CHOWN", "CAP_KILL"},
				OOMScoreAdj: 500, HardRlimits: map[string]uint64{"RLIMIT_NOFILE": 1000}}
			in.Sandbox.CgroupParent = "/kubepods.slice/kubepods-podu1.slice"
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20, OomScoreAdj: -997,
				Unified: map[string]string{"memory.high": "1"}, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}}
			in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2000, Hard: 2000}}
			sec(in).Seccomp = &runtimeapi.SecurityProfile{}
		},
		"user-namespace": func(in *Input) {
			in.Sandbox.Users = Users{NS: "/proc/7/fd/9", UIDs: IDRange{65536, 65536}, GIDs: IDRange{65536, 65536}}
			in.Sandbox.PIDNS = "/proc/7/fd/13"
			sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := base()
			change(&in)
			res, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(struct {
				Notes []string    `json:"notes"`
				Spec  *specs.Spec `json:"spec"`
			}{res.Notes, res.Spec}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			path := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("differs from %s (-update rewrites it):\n%s", path, got)
			}
		})
	}
}

// TestStopTime: systemd waits no longer than the pod's grace period, and only
// its scopes are told so.
func TestStopTime(t *testing.T) {
	const property = "org.systemd.property.TimeoutStopUSec"
	for grace, want := range map[string]string{
		"5": "uint64 5000000", "0": "uint64 1000000", "3600": "uint64 90000000", "-1": "uint64 30000000", "": "uint64 30000000", "'x": "uint64 30000000",
	} {
		in := base()
		in.Host.SystemdCgroup = true
		in.Config.Annotations = map[string]string{"io.kubernetes.pod.terminationGracePeriod": grace, property: "uint64 0"}
		if got := annotations(in)[property]; got != want {
			t.Errorf("grace period %q: %q, want %q", grace, got, want)
		}
	}
	if got, ok := annotations(base())[property]; ok {
		t.Errorf("without systemd: %q", got)
	}
}

func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Input)
		want   error
	}{
		"no command":         {func(in *Input) { in.Config.Command, in.Config.Args, in.Image = nil, nil, imagespec.ImageConfig{} }, ErrInvalid},
		"NUL in argument":    {func(in *Input) { in.Config.Args = []string{"a\x00b"} }, ErrInvalid},
		"cwd in a fd":        {func(in *Input) { in.Config.WorkingDir = "/proc/self/fd/7" }, ErrInvalid},
		"cwd by dots":        {func(in *Input) { in.Config.WorkingDir = "/x/../proc/self/fd/7/../../.." + "/self/fd/8" }, ErrInvalid},
		"no network":         {func(in *Input) { in.Sandbox.NetworkNS = "" }, ErrInvalid},
		"no uts":             {func(in *Input) { in.Sandbox.UTSNS = "" }, ErrInvalid},
		"no ipc":             {func(in *Input) { in.Sandbox.IPCNS = "" }, ErrInvalid},
		"network container":  {func(in *Input) { sec(in).NamespaceOptions.Network = runtimeapi.NamespaceMode_CONTAINER }, ErrInvalid},
		"pid of no pod":      {func(in *Input) { sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD }, ErrInvalid},
		"pid of no target":   {func(in *Input) { sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET }, ErrInvalid},
		"unknown capability": {func(in *Input) { sec(in).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}} }, ErrInvalid},
		"mount over root":    {func(in *Input) { in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x/..", HostPath: "/a"}} }, ErrInvalid},
		"relative source":    {func(in *Input) { in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "a"}} }, ErrInvalid},
		"rro alone": {func(in *Input) {
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/a", RecursiveReadOnly: true}}
		}, ErrInvalid},
		"rro not private": {func(in *Input) {
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/a", Readonly: true, RecursiveReadOnly: true,
				Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
		}, ErrInvalid},
		"rro on an old host": {func(in *Input) {
			in.Host.RecursiveReadOnly = false
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/a", Readonly: true, RecursiveReadOnly: true}}
		}, ErrUnsupported},
		"seccomp not loaded": {func(in *Input) {
			sec(in).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p"}
		}, ErrInvalid},
		"seccomp without kernel": {func(in *Input) {
			in.Host.Seccomp, in.LocalSeccomp = false, &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"}
			sec(in).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p"}
		}, ErrUnsupported},
		"apparmor without kernel": {func(in *Input) {
			sec(in).Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p"}
		}, ErrUnsupported},
		"huge pages": {func(in *Input) {
			in.Config.Linux.Resources.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "1GB", Limit: 1}}
		}, ErrUnsupported},
		"oom score":          {func(in *Input) { in.Config.Linux.Resources.OomScoreAdj = -1001 }, ErrInvalid},
		"no cgroup":          {func(in *Input) { in.Sandbox.CgroupParent = "" }, ErrInvalid},
		"device path":        {func(in *Input) { in.Devices = []Device{{Path: "/dev/../etc/x", Type: "c"}} }, ErrInvalid},
		"device permissions": {func(in *Input) { in.Devices = []Device{{Path: "/dev/x", Type: "c", Permissions: "rx"}} }, ErrInvalid},
		"image volume": {func(in *Input) {
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "i"}}}
		}, ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			in := base()
			tc.change(&in)
			if _, err := Build(in); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestArguments(t *testing.T) {
	for _, tc := range []struct {
		command, args []string
		want          string
	}{
		{nil, nil, "/entry default"},
		{nil, []string{"a"}, "/entry a"},
		{[]string{"c"}, nil, "c"},
		{[]string{"c"}, []string{"a", "b"}, "c a b"},
	} {
		in := base()
		in.Config.Command, in.Config.Args = tc.command, tc.args
		got, err := processArgs(in)
		if err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("%v %v: %v %v, want %s", tc.command, tc.args, got, err, tc.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all := len(knownCapabilities)
	for name, tc := range map[string]struct {
		add, drop []string
		count     int
		has, not  string
	}{
		"default":           {nil, nil, len(defaultCapabilities), "CAP_CHOWN", "CAP_SYS_ADMIN"},
		"add all":           {[]string{"ALL"}, nil, all, "CAP_SYS_ADMIN", ""},
		"drop all":          {nil, []string{"all"}, 0, "", "CAP_CHOWN"},
		"drop all, add one": {[]string{"NET_BIND_SERVICE"}, []string{"ALL"}, 1, "CAP_NET_BIND_SERVICE", "CAP_CHOWN"},
		"add all, drop one": {[]string{"ALL"}, []string{"SYS_ADMIN"}, all - 1, "CAP_BPF", "CAP_SYS_ADMIN"},
		"both":              {[]string{"CHOWN"}, []string{"CHOWN"}, len(defaultCapabilities) - 1, "", "CAP_CHOWN"},
	} {
		in := base()
		sec(&in).Capabilities = &runtimeapi.Capability{AddCapabilities: tc.add, DropCapabilities: tc.drop}
		res, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		got := res.Spec.Process.Capabilities
		if len(got.Bounding) != tc.count || tc.has != "" && !slices.Contains(got.Bounding, tc.has) || slices.Contains(got.Bounding, tc.not) || len(got.Inheritable) != 0 {
			t.Errorf("%s: %v", name, got.Bounding)
		}
	}
	if got := Capabilities(1<<0 | 1<<40); !slices.Equal(got, []string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"}) {
		t.Errorf("mask: %v", got)
	}
}

func TestAnnotationsOfPodsSteerNothing(t *testing.T) {
	in := base()
	in.Config.Annotations = map[string]string{"run.oci.handler": "krun", "io.kubernetes.cri.container-name": "x"}
	res, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range res.Spec.Annotations {
		if strings.HasPrefix(k, "run.oci") || v == "x" {
			t.Errorf("annotation %s=%s", k, v)
		}
	}
}

func TestSeccomp(t *testing.T) {
	in := base()
	sec(&in).Seccomp = &runtimeapi.SecurityProfile{}
	res, err := Build(in)
	if err != nil || res.Spec.Linux.Seccomp == nil || res.Spec.Linux.Seccomp.DefaultAction != specs.ActErrno {
		t.Fatalf("RuntimeDefault: %v", err)
	}
	CompiledSeccomp(res.Spec, []byte("bpf"))
	if res.Spec.Annotations["run.oci.seccomp_bpf_data"] != "YnBm" {
		t.Errorf("compiled filter: %v", res.Spec.Annotations)
	}
	for _, p := range []*runtimeapi.SecurityProfile{nil, {ProfileType: runtimeapi.SecurityProfile_Unconfined}} {
		sec(&in).Seccomp = p
		res, err := Build(in)
		if err != nil || res.Spec.Linux.Seccomp != nil {
			t.Fatalf("%v: %v", p, err)
		}
		if CompiledSeccomp(res.Spec, []byte("bpf")); res.Spec.Annotations["run.oci.seccomp_bpf_data"] != "" {
			t.Error("a filter without a profile")
		}
	}
	for raw, ok := range map[string]bool{`{"defaultAction":"SCMP_ACT_ALLOW"}`: true, `{}`: false, `{"defaultAction":""}`: false, `[`: false} {
		if _, err := ParseSeccomp([]byte(raw)); (err == nil) != ok {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestResolveUser(t *testing.T) {
	acc := Accounts{
		Passwd: []byte("root:x:0:0:root:/root:/bin/sh\n# comment:x:5:5::/c:\nbroken\nweb:x:101:102::/srv:/bin/sh\nnohome:x:7:8:::\n" +
			"4294967296:x:0:0::/:\n4294967295:x:0:0::/:\n+5:x:0:0::/:\n-1:x:0:0::/:\nstray:x:9:4294967295::/:\n"),
		Group: []byte("root:x:0:\nweb:x:102:\nextra:x:300:other,web\nshort:x\n4294967296:x:0:\n"),
	}
	n := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	type sc = runtimeapi.LinuxContainerSecurityContext
	for name, tc := range map[string]struct {
		sec   *sc
		image string
		want  User
		fails bool
	}{
		"nothing":          {nil, "", User{0, 0, []uint32{0}, "/root"}, false},
		"image name":       {nil, "web", User{101, 102, []uint32{102, 300}, "/srv"}, false},
		"image both":       {nil, "web:root", User{101, 0, []uint32{0, 300}, "/srv"}, false},
		"image number":     {nil, "101", User{101, 102, []uint32{102, 300}, "/srv"}, false},
		"unknown number":   {nil, "4000:4001", User{4000, 4001, []uint32{4001}, "/"}, false},
		"user over image":  {&sc{RunAsUser: n(7)}, "web:extra", User{7, 8, []uint32{8}, "/"}, false},
		"zero over image":  {&sc{RunAsUser: n(0)}, "web", User{0, 0, []uint32{0}, "/root"}, false},
		"username":         {&sc{RunAsUsername: "web", RunAsGroup: n(9)}, "", User{101, 9, []uint32{9, 300}, "/srv"}, false},
		"supplemental":     {&sc{RunAsUser: n(101), SupplementalGroups: []int64{300, 400}}, "", User{101, 102, []uint32{102, 300, 400}, "/srv"}, false},
		"strict":           {&sc{RunAsUser: n(101), SupplementalGroups: []int64{400}, SupplementalGroupsPolicy: strict}, "", User{101, 102, []uint32{102, 400}, "/srv"}, false},
		"unknown name":     {nil, "nobody", User{}, true},
		"unknown group":    {nil, "web:nogroup", User{}, true},
		"negative":         {&sc{RunAsUser: n(-1)}, "", User{}, true},
		"too large":        {&sc{RunAsUser: n(1<<32 - 1)}, "", User{}, true},
		"larger":           {&sc{RunAsUser: n(1 << 32)}, "", User{}, true},
		"group negative":   {&sc{RunAsUser: n(7), RunAsGroup: n(-1)}, "", User{}, true},
		"group alone":      {&sc{RunAsGroup: n(9)}, "web", User{}, true},
		"image too large":  {nil, "4294967296", User{}, true}, // has an entry that makes it root
		"image no ID":      {nil, "4294967295", User{}, true},
		"image sign":       {nil, "+5", User{}, true},
		"image negative":   {nil, "-1", User{}, true},
		"image group":      {nil, "web:4294967296", User{}, true},
		"user of no group": {nil, "stray", User{}, true},
		"group too large":  {&sc{SupplementalGroups: []int64{1 << 32}}, "", User{}, true},
		"comment is no id": {nil, "5", User{5, 0, []uint32{0}, "/"}, false},
	} {
		got, err := ResolveUser(tc.sec, tc.image, acc)
		if (err != nil) != tc.fails {
			t.Errorf("%s: %v", name, err)
		} else if err == nil && (got.UID != tc.want.UID || got.GID != tc.want.GID || got.Home != tc.want.Home || !slices.Equal(got.Groups, tc.want.Groups)) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		} else if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", name, err)
		}
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("web:extra", "web:x:1:2::/h:", "extra:x:3:web")
	f.Fuzz(func(t *testing.T, image, passwd, group string) {
		if u, err := ResolveUser(nil, image, Accounts{[]byte(passwd), []byte(group)}); err == nil && len(u.Groups) == 0 {
			t.Errorf("no group for %q", image)
		}
	})
}

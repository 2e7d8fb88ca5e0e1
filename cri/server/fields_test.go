package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func number(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

// holdsIn runs scripts in a container and compares what they print.
func (n *node) holdsIn(c runtimeapi.RuntimeServiceClient, id string, want map[string]string) {
	n.t.Helper()
	for script, says := range want {
		if got := strings.TrimSpace(n.exec(c, id, script)); got != says {
			n.t.Errorf("%s: %q, want %q", script, got, says)
		}
	}
}

// TestFieldsOfAPod sets what a pod and its containers can be given, and looks
// for it from inside.
func TestFieldsOfAPod(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	pod := n.pod("fields")
	pod.Annotations = map[string]string{"a": "b"}
	pod.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b"}, Options: []string{"ndots:3"}}
	pod.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "127.0.0.1"}}
	pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "2000 3000"}
	pod.Linux.Overhead = &runtimeapi.LinuxContainerResources{CpuShares: 2}
	box := n.sandbox(c, pod, "crun")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("mounted"), 0o644); err != nil {
		t.Fatal(err)
	}
	profile := filepath.Join(dir, "seccomp.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := containerConfig("main")
	cfg.Command, cfg.Args, cfg.WorkingDir = []string{"sh", "-c"}, []string{"sleep 1000"}, "/var/www"
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "WHO", Value: []byte("me")}}
	cfg.Image.UserSpecifiedImage = "busybox"
	cfg.Annotations = map[string]string{"c": "d"}
	cfg.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/ro", HostPath: dir, Readonly: true, RecursiveReadOnly: true, SelinuxRelabel: true},
		{ContainerPath: "/rw", HostPath: dir, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	}
	cfg.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing", Permissions: "rw"}}
	s := cfg.Linux.SecurityContext
	s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = number(1000), number(2000), []int64{3000}
	s.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
	s.NoNewPrivs, s.ReadonlyRootfs = true, true
	s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/meminfo"}, []string{"/proc/sys"}
	s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}
	id := n.begin(c, box, cfg, pod)
	n.holdsIn(c, id, map[string]string{
		"hostname":             "fields",
		"cat /etc/resolv.conf": "search a.b\nnameserver 10.0.0.10\noptions ndots:3",
		"cat /proc/sys/net/ipv4/ip_local_port_range": "2000\t3000",
		"pwd": "/var/www", "echo $WHO": "me", "cat /ro/file": "mounted",
		"touch /ro/x 2>&1 | grep -c Read-only": "1", "touch /x 2>&1 | grep -c Read-only": "1",
		"echo x > /dev/nothing && echo ok":            "ok",
		"id -u; id -g; id -G":                         "1000\n2000\n2000 3000",
		"grep NoNewPrivs /proc/1/status":              "NoNewPrivs:\t1",
		"wc -c < /proc/meminfo":                       "0",
		"mkdir /rw/y 2>&1 | grep -c 'not permitted'":  "1",
		"echo 1 > /proc/sys/vm/swappiness || echo no": "no",
		"grep -c . /proc/1/cmdline":                   "1",
	})
	amb := strings.TrimSpace(n.exec(c, id, "grep CapAmb /proc/1/status"))
	if amb != "CapAmb:\t0000000000000400" {
		t.Errorf("ambient capabilities: %s", amb)
	}
	st := n.status(c, id)
	if len(st.GetMounts()) != 2 || st.GetAnnotations()["c"] != "d" || st.GetUser().GetLinux().GetUid() != 1000 || st.GetUser().GetLinux().GetGid() != 2000 ||
		fmt.Sprint(st.GetUser().GetLinux().GetSupplementalGroups()) != "[2000 3000]" && fmt.Sprint(st.GetUser().GetLinux().GetSupplementalGroups()) != "[3000]" || st.GetLogPath() == "" ||
		st.GetImage().GetUserSpecifiedImage() != "busybox" || st.GetImageId() == "" || st.GetImageRef() == "" || !proto.Equal(st.GetMetadata(), cfg.Metadata) {
		t.Errorf("status %v", st)
	}
	n.checkStatuses(c, box, id, pod)
}

// checkStatuses asks for the pod and its container by every list.
func (n *node) checkStatuses(c runtimeapi.RuntimeServiceClient, box, id string, pod *runtimeapi.PodSandboxConfig) {
	t, ctx := n.t, n.t.Context()
	r, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := r.GetStatus()
	if s.GetRuntimeHandler() != "crun" || s.GetAnnotations()["a"] != "b" || s.GetCreatedAt() == 0 || s.GetLinux().GetNamespaces().GetOptions().GetPid() != runtimeapi.NamespaceMode_CONTAINER ||
		len(r.GetContainersStatuses()) != 1 || r.GetTimestamp() == 0 || s.GetNetwork().GetAdditionalIps()[0].GetIp() != "fd00::7" || !proto.Equal(s.GetMetadata(), pod.Metadata) {
		t.Errorf("sandbox status %v", r)
	}
	boxes, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(boxes.GetItems()) != 1 || boxes.GetItems()[0].GetRuntimeHandler() != "crun" {
		t.Errorf("sandboxes %v, %v", boxes, err)
	}
	all, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil || len(all.GetContainers()) != 1 || all.GetContainers()[0].GetAnnotations()["c"] != "d" {
		t.Errorf("containers %v, %v", all, err)
	}
	ps, err := c.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: box[:7]}})
	if got := drain(t, ps, err); len(got) != 1 || !proto.Equal(got[0].GetPodSandboxes()[0], boxes.GetItems()[0]) {
		t.Errorf("stream of sandboxes %v", got)
	}
	cs, err := c.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id[:7]}})
	if got := drain(t, cs, err); len(got) != 1 || !proto.Equal(got[0].GetContainers()[0], all.GetContainers()[0]) {
		t.Errorf("stream of containers %v", got)
	}
	// The log after a rotation, twice.
	log := n.status(c, id).GetLogPath()
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "there is a log again", func() bool { _, err := os.Stat(log); return err == nil })
	_, err = c.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(n.dir, "checkpoint.tar"), Timeout: 10})
	if err != nil { // without CRIU
		wantCode(t, "checkpoint", err, codes.Unimplemented)
	}
	_, err = c.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.7.0.0/24"}}})
	wantCode(t, "pod range", err, codes.OK)
	if r, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo bad >&2; exit 3"}}); err != nil || string(r.GetStderr()) != "bad\n" || r.GetExitCode() != 3 {
		t.Errorf("exec: %v, %v", r, err)
	}
	if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Fatal(err)
	}
	no := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	boxes, err = c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: no}})
	if err != nil || len(boxes.GetItems()) != 1 || boxes.GetItems()[0].GetState() != no.State {
		t.Errorf("sandboxes that are not ready: %v, %v", boxes, err)
	}
}

// TestFieldsOfPrivilege covers the host's namespaces, a target's, terminals,
// privileged containers, users by name, and what fails at the start.
func TestFieldsOfPrivilege(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	pod := n.pod("host")
	pod.Linux.SecurityContext.Privileged = true
	pod.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER,
		UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}}
	box := n.sandbox(c, pod, "")
	cfg := containerConfig("privileged", "cat")
	cfg.Stdin, cfg.StdinOnce, cfg.Tty = true, true, true
	cfg.Linux.SecurityContext.Privileged = true
	cfg.Linux.SecurityContext.NamespaceOptions = proto.CloneOf(pod.Linux.SecurityContext.NamespaceOptions)
	id := n.begin(c, box, cfg, pod)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n.holdsIn(c, id, map[string]string{"readlink /proc/1/ns/net": own, "readlink /proc/1/fd/0 | cut -c-9": "/dev/pts/"})
	seer := containerConfig("seer", sleep...)
	seer.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}
	n.holdsIn(c, n.begin(c, box, seer, pod), map[string]string{"cat /proc/1/cmdline | tr -d '\\0'": "cat"})
	named := containerConfig("named", sleep...)
	named.Linux.SecurityContext.NamespaceOptions = proto.CloneOf(pod.Linux.SecurityContext.NamespaceOptions)
	named.Linux.SecurityContext.RunAsUsername = "nobody"
	n.holdsIn(c, n.begin(c, box, named, pod), map[string]string{"id -un": "nobody"})
	missing := containerConfig("missing", "/no/such/command")
	missing.Linux.SecurityContext.NamespaceOptions = proto.CloneOf(pod.Linux.SecurityContext.NamespaceOptions)
	gone := n.create(c, box, missing, pod)
	if _, err := c.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: gone}); err == nil {
		t.Error("what is not there has been started")
	}
	if st := n.status(c, gone); st.GetExitCode() != 127 || st.GetReason() != "ContainerCannotRun" || st.GetMessage() == "" {
		t.Errorf("status %v", st)
	}
}

// TestFieldsOfUsers maps users, over the socket.
func TestFieldsOfUsers(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	pod := n.pod("users")
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usersOption()
	box := n.sandbox(c, pod, "")
	dir := t.TempDir()
	cfg := usersContainer("main", runtimeapi.NamespaceMode_CONTAINER, sleep...)
	ids := usersOption().Uids
	cfg.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/data", HostPath: dir, UidMappings: ids, GidMappings: ids},
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: busybox}, ImageSubPath: "etc", Readonly: true},
	}
	id := n.begin(c, box, cfg, pod)
	n.holdsIn(c, id, map[string]string{
		"awk '{print $1, $2, $3}' /proc/self/uid_map": fmt.Sprintf("0 %d 65536", hostRoot), "stat -c %u /data": fmt.Sprint(os.Getuid()), "ls /image/passwd": "/image/passwd",
	})
}

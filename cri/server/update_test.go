package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/cri/container"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupFile reads a file of a container's cgroup: of v1's controller, or of v2.
func (n *node) cgroupFile(id, controller, v1, v2 string) string {
	n.t.Helper()
	f, err := n.server.cfg.Containers.Facts(id)
	if err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join("/sys/fs/cgroup", controller, f.CgroupsPath, v1)
	if container.DetectHost(false).CgroupV2 {
		path = filepath.Join("/sys/fs/cgroup", f.CgroupsPath, v2)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestUpdateContainerResources sets each limit, looks at the kernel and at what
// is told, and again after a restart.
func TestUpdateContainerResources(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	for _, handler := range []string{"crun", "runc"} {
		t.Run(handler, func(t *testing.T) {
			pod := n.pod("update-" + handler)
			box := n.sandbox(c, pod, handler)
			cfg := containerConfig("main", sleep...)
			cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{
				MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 80 << 20, CpuShares: 128, CpuQuota: 20000, CpuPeriod: 100000, OomScoreAdj: 999, CpusetCpus: "0",
			}
			id := n.begin(c, box, cfg, pod)
			want := proto.CloneOf(cfg.Linux.Resources)
			update := func(r *runtimeapi.LinuxContainerResources, code codes.Code) {
				t.Helper()
				_, err := c.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
				wantCode(t, fmt.Sprint(r), err, code)
				if got := n.status(c, id).GetResources().GetLinux(); !proto.Equal(got, want) {
					t.Errorf("after %v:\n%v is told, not\n%v", r, got, want)
				}
			}
			want.CpuShares = 512
			update(&runtimeapi.LinuxContainerResources{CpuShares: 512}, codes.OK)
			want.CpuQuota = 30000
			update(&runtimeapi.LinuxContainerResources{CpuQuota: 30000}, codes.OK)
			want.MemoryLimitInBytes, want.MemorySwapLimitInBytes = 128<<20, 144<<20
			update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, OomScoreAdj: 1}, codes.OK)
			want.MemorySwapLimitInBytes = 256 << 20
			update(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 256 << 20}, codes.OK)
			want.CpusetMems = "0"
			update(&runtimeapi.LinuxContainerResources{CpusetMems: "0", CpusetCpus: "0"}, codes.OK)
			update(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 1 << 20}, codes.InvalidArgument)
			update(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 1}}}, codes.FailedPrecondition)
			host := container.DetectHost(false)
			if !host.CgroupV2 {
				update(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}}, codes.FailedPrecondition)
			}
			check := func(what, got, want string) {
				t.Helper()
				if got != want {
					t.Errorf("%s is %s, want %s", what, got, want)
				}
			}
			check("the memory limit", n.cgroupFile(id, "memory", "memory.limit_in_bytes", "memory.max"), fmt.Sprint(128<<20))
			if host.SwapAccounting {
				check("the swap limit", n.cgroupFile(id, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"), fmt.Sprint(map[bool]int{false: 256 << 20, true: 128 << 20}[host.CgroupV2]))
			}
			if !host.CgroupV2 {
				check("the quota", n.cgroupFile(id, "cpu", "cpu.cfs_quota_us", ""), "30000")
				check("the shares", n.cgroupFile(id, "cpu", "cpu.shares", ""), "512")
			} else {
				check("the quota", n.cgroupFile(id, "", "", "cpu.max"), "30000 100000")
			}
			check("the score", strings.TrimSpace(n.exec(c, id, "cat /proc/1/oom_score_adj")), "999")
			n.end()
			n.start()
			if got := n.status(c, id).GetResources().GetLinux(); !proto.Equal(got, want) {
				t.Errorf("after a restart %v is told, not %v", got, want)
			}
			want.MemoryLimitInBytes, want.MemorySwapLimitInBytes = 0, 0
			update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -1}, codes.OK)
		})
	}
}

// TestUpdatePodSandboxResources puts a pod's resources on record, for good.
func TestUpdatePodSandboxResources(t *testing.T) {
	n := newNode(t)
	c, _ := n.raw()
	ctx := t.Context()
	pod := n.pod("resize")
	pod.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
	pod.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 7}
	box := n.sandbox(c, pod, "")
	told := func(want ...string) {
		t.Helper()
		r, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(r.GetInfo()["info"], w) {
				t.Errorf("no %s in %s", w, r.GetInfo()["info"])
			}
		}
	}
	told(`"overhead":{"memory_limit_in_bytes":1048576}`, `"resources":{"cpu_shares":7}`)
	_, err := c.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: box[:12], Resources: &runtimeapi.LinuxContainerResources{CpuShares: 9}})
	wantCode(t, "resources", err, codes.OK)
	told(`"overhead":{"memory_limit_in_bytes":1048576}`, `"resources":{"cpu_shares":9}`)
	_, err = c.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: box, Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 2}})
	wantCode(t, "overhead", err, codes.OK)
	n.end()
	n.start()
	told(`"overhead":{"cpu_shares":2}`, `"resources":{"cpu_shares":9}`)
	if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Fatal(err)
	}
	_, err = c.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: box})
	wantCode(t, "a stopped sandbox", err, codes.FailedPrecondition)
}

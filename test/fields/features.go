package fields

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// features are what a host may lack: how to tell, and what to say.
var features = map[string]func(*running) string{
	"cgroup2": func(*running) string {
		return fileOr("/sys/fs/cgroup/cgroup.controllers", "cgroup v2 is not the host's hierarchy")
	},
	"apparmor": func(*running) string {
		return fileOr("/sys/kernel/security/apparmor", "the kernel runs without AppArmor")
	},
	"no-apparmor": func(*running) string {
		if fileOr("/sys/kernel/security/apparmor", "none") == "" {
			return "the kernel runs with AppArmor"
		}
		return ""
	},
	"no-selinux": func(*running) string {
		if fileOr("/sys/fs/selinux/enforce", "none") == "" {
			return "the kernel runs with SELinux"
		}
		return ""
	},
	"selinux": func(*running) string { return fileOr("/sys/fs/selinux/enforce", "the kernel runs without SELinux") },
	"swap-accounting": func(*running) string {
		if fileOr("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "none") == "" || fileOr("/sys/fs/cgroup/cgroup.controllers", "none") == "" {
			return ""
		}
		return "the kernel does not account for swap"
	},
	"loop": func(*running) string {
		if out, err := exec.Command("losetup", "-f").CombinedOutput(); err != nil {
			return "no loop device can be had: " + string(out)
		}
		return ""
	},
	"hugepages": func(*running) string {
		n, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
		if err != nil || strings.TrimSpace(string(n)) == "0" {
			return "the host has no huge pages of 2 MiB"
		}
		return ""
	},
	"userns": func(r *running) string {
		return r.handler((*runtimeapi.RuntimeHandlerFeatures).GetUserNamespaces, "the OCI runtime, the kernel or the filesystem cannot do user namespaces with idmapped mounts")
	},
	"rro": func(r *running) string {
		return r.handler((*runtimeapi.RuntimeHandlerFeatures).GetRecursiveReadOnlyMounts, "the OCI runtime does not say that it can make mounts recursively read-only")
	},
}

// handler is why, unless the default runtime handler says that it has a feature.
func (r *running) handler(has func(*runtimeapi.RuntimeHandlerFeatures) bool, why string) string {
	runtime, _ := r.a.CRI()
	resp, err := runtime.Status(context.Background(), &runtimeapi.StatusRequest{})
	if err != nil {
		return err.Error()
	}
	for _, h := range resp.RuntimeHandlers {
		if h.Name == "" && has(h.GetFeatures()) {
			return ""
		}
	}
	return why
}

func fileOr(path, why string) string {
	if _, err := os.Stat(path); err != nil {
		return why
	}
	return ""
}

// need skips the case where the host lacks a feature.
func (r *running) need() error {
	for _, name := range strings.Fields(r.step.Args) {
		test, ok := features[name]
		if !ok {
			return fmt.Errorf("no feature %q", name)
		}
		if why := test(r); why != "" {
			if r.skipped != nil {
				*r.skipped = why
			}
			r.t.Skipf("needs %s: %s", name, why)
		}
	}
	return nil
}

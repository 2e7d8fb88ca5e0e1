package security

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	testimage "github.com/berthd/berth/test/image"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHugeImageConfig builds images that say too much of themselves.
func TestHugeImageConfig(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		// What execve takes no more of: the container fails, and says so; no other does.
		image := n.image(t, func(s *testimage.Spec) {
			s.Config.Env = append(s.Config.Env, "HUGE="+strings.Repeat("x", 1<<20))
		})
		id, err := p.run(p.container(image, "true"))
		if err == nil { // some runtimes find out only when they execute it
			p.output(id)
			if st := p.status(id); st.ExitCode == 0 {
				t.Errorf("a process has an environment of 1 MiB: %v", st)
			}
		}
		// Larger than any configuration may be.
		spec, err := testimage.BusyboxSpec("docker.io/test/" + unique("image") + ":1")
		if err != nil {
			t.Skip(err)
		}
		spec.Config.Labels = map[string]string{"huge": strings.Repeat("x", 9<<20)}
		var b bytes.Buffer
		if err := testimage.WriteOCI(&b, spec); err != nil {
			t.Fatal(err)
		}
		if _, err := n.images.Import(t.Context(), &b, nil); err == nil {
			t.Error("an image with a configuration of 9 MiB was taken")
		}
		many := testimage.Spec{Names: spec.Names}
		for range 501 {
			many.Layers = append(many.Layers, testimage.Layer{"/x": {Body: []byte("x"), Mode: 0o644}})
		}
		b.Reset()
		if err := testimage.WriteOCI(&b, many); err != nil {
			t.Fatal(err)
		}
		if _, err := n.images.Import(t.Context(), &b, nil); err == nil {
			t.Error("an image of 501 layers was taken")
		}
		if out, code := p.result(p.container(n.image(t, nil), "echo on")); out != "on\n" || code != 0 {
			t.Errorf("the next container: %q, %d", out, code)
		}
	})
}

// TestHugeRequests asks for more than a request may say.
func TestHugeRequests(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		image := n.image(t, nil)
		for size, want := range map[int]codes.Code{17 << 20: codes.ResourceExhausted, 10 << 20: codes.InvalidArgument} {
			cfg := p.container(image, "true")
			cfg.Annotations = map[string]string{"huge": strings.Repeat("x", size)}
			if _, err := p.create(cfg); status.Code(err) != want {
				t.Errorf("annotations of %d bytes: %v, want %v", size, err, want)
			}
		}
		sandbox := n.configOf(unique("pod"))
		sandbox.Annotations = map[string]string{"huge": strings.Repeat("x", 10<<20)}
		if _, err := n.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: handler}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a sandbox with annotations of 10 MiB: %v", err)
		}
		for i, dns := range []*runtimeapi.DNSConfig{
			{Servers: make([]string, 40)}, {Searches: []string{strings.Repeat("x", 300)}}, {Options: []string{"a\nb"}}, {Servers: []string{"1.1.1.1 #"}},
		} {
			sandbox := n.configOf(unique("pod"))
			sandbox.DnsConfig = dns
			_, err := n.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: handler})
			refused(t, fmt.Sprint("DNS configuration ", i), err)
		}
	})
}

// TestSysctls asks for the kernel's settings that are not a pod's, in every
// spelling (CVE-2022-0811).
func TestSysctls(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		was := hostSwitches(t)
		for name, value := range map[string]string{
			"kernel.core_pattern": "|/evil", "kernel/core_pattern": "|/evil", "net.ipv4.ip_forward+kernel.core_pattern": "1", "net/../kernel/core_pattern": "|/evil",
			"net.ipv4.ip_forward": "1\nkernel.core_pattern=|/evil", "net.ipv4.ip_forward+": "1+kernel.core_pattern=x", "kernel.shm_rmid_forced": "1+kernel.core_pattern=|/evil#",
			"kernel.msgmax\n": "1", "vm.swappiness": "1", "fs.file-max": "1", "user.max_user_namespaces": "1", "": "1", ".": "1", "net..ipv4": "1", "net.": "1", "/proc/sys/net": "1",
			"kernel.sem/../core_pattern": "x", "fs.mqueue/../file-max": "1", "kernel.hostname": "x", "net.core.bpf_jit_enable\x00": "1", "net.ipv4.nothing_there": "1",
		} {
			cfg := n.configOf(unique("pod"))
			cfg.Linux.Sysctls = map[string]string{name: value}
			r, err := n.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
			refused(t, "sysctl "+name+"="+value, err)
			if err == nil {
				n.cri.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
			}
		}
		if now := hostSwitches(t); now != was {
			restoreSwitches(t, was)
			t.Errorf("%s of the host is %q", corePattern, now)
		}
	})
}

// TestProfiles asks for profiles that are not there, are no profiles, or cannot be
// enforced (CVE-2023-2431): no container runs with less than it asked for.
func TestProfiles(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		image := n.image(t, nil)
		dir := t.TempDir()
		for name, body := range map[string]string{"empty": "", "nothing": "{}", "null": "null", "list": "[]", "text": "default", "no-default": `{"syscalls":[]}`, "unknown": `{"defaultAction":"SCMP_ACT_WHATEVER"}`} {
			if err := os.WriteFile(dir+"/"+name, []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, ref := range []string{"", "empty", "../" + dir, "localhost/", "localhost/../../etc/passwd", dir, dir + "/none", dir + "/empty", dir + "/nothing", dir + "/null", dir + "/list", dir + "/text", dir + "/no-default", dir + "/unknown", "/etc/passwd", "/dev/zero", "/dev/stdin"} {
			cfg := p.container(image, "true")
			cfg.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
			if id, err := p.run(cfg); err == nil {
				t.Errorf("a container runs with the seccomp profile %q: %v", ref, p.status(id))
			}
		}
		for _, ref := range []string{"berth-none", "", "localhost/berth-none", "unconfined (enforce)"} {
			cfg := p.container(image, "true")
			cfg.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
			if _, err := p.create(cfg); err == nil {
				t.Errorf("a container runs with the AppArmor profile %q", ref)
			}
		}
		cfg := p.container(image, "true")
		cfg.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 77}
		_, err := p.create(cfg)
		refused(t, "a profile of no type", err)
	})
}

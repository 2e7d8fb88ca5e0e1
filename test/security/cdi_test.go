package security

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	testimage "github.com/berthd/berth/test/image"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// vendor writes the specification of a device with everything that a specification
// may have, and returns the device's name. What the hook writes is at the path.
func (n *node) vendor(t testing.TB) (device, hooked string) {
	t.Helper()
	class := unique("class")
	dir := filepath.Join(n.dir, "vendor", class)
	if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	hooked = filepath.Join(dir, "hooked")
	for path, body := range map[string]string{
		"lib/driver": "driver of " + class, "hook": "#!/bin/sh\ncat > " + hooked + "\necho \"$1 $WHO\" >> " + hooked + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(body), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	spec := fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "berth.test/%s", "containerEdits": {"env": ["CLASS=%s"]}, "devices": [{"name": "one", "containerEdits": {
		"env": ["DEVICE=one"], "additionalGids": [44], "deviceNodes": [{"path": "/dev/vendor/one", "hostPath": "/dev/zero", "permissions": "rw"}],
		"mounts": [{"hostPath": "%s/lib", "containerPath": "/opt/vendor", "options": ["ro", "nosuid", "nodev", "bind"]}],
		"hooks": [{"hookName": "createRuntime", "path": "%s/hook", "args": ["hook", "configure"], "env": ["WHO=vendor", "PATH=/bin:/usr/bin"]}]}}]}`, class, class, dir, dir)
	if err := os.MkdirAll(n.state("cdi"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.state("cdi"), class+".json"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	return "berth.test/" + class + "=one", hooked
}

// TestDevicesOfCDI injects a vendor's device into containers with and without a
// user namespace, by CRI's field and by a device plugin's annotation; images and
// pods that name one get nothing (CVE-2026-53492).
func TestDevicesOfCDI(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		device, hooked := n.vendor(t)
		image := n.image(t, func(s *testimage.Spec) { s.Config.Labels = map[string]string{"cdi.k8s.io/x": device} })
		look := `head -c 3 /dev/vendor/one | od -An -tx1; cat /opt/vendor/driver; echo " $CLASS $DEVICE"; id -G | grep -c 44; touch /opt/vendor/x 2>/dev/null && echo WRITTEN; true`
		class := strings.TrimSuffix(strings.TrimPrefix(device, "berth.test/"), "=one")
		want := " 00 00 00\ndriver of " + class + " " + class + " one\n1\n"
		for name, p := range map[string]*pod{"plain": n.pod(t, handler, nil), "user namespace": n.usersPod(t, handler)} {
			field := p.container(image, look)
			field.CDIDevices = []*runtimeapi.CDIDevice{{Name: device}}
			annotation := p.container(image, look)
			annotation.Annotations = map[string]string{"cdi.k8s.io/plugin_1": device}
			for by, cfg := range map[string]*runtimeapi.ContainerConfig{"field": field, "annotation": annotation} {
				os.Remove(hooked)
				if out, _ := p.result(cfg); out != want {
					t.Errorf("%s, by %s: %q, want %q", name, by, out, want)
				}
				if b, err := os.ReadFile(hooked); err != nil || !strings.Contains(string(b), `"ociVersion"`) || !strings.HasSuffix(string(b), "configure vendor\n") {
					t.Errorf("%s, by %s: the hook has said %q, %v", name, by, b, err)
				}
			}
			if out, _ := p.result(p.container(image, "ls /dev/vendor /opt/vendor 2>/dev/null; echo $DEVICE")); out != "\n" {
				t.Errorf("%s: an image has given itself a device: %q", name, out)
			}
			unknown := p.container(image, "true")
			unknown.CDIDevices = []*runtimeapi.CDIDevice{{Name: "berth.test/" + class + "=two"}}
			if _, err := p.create(unknown); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), class+"=two") {
				t.Errorf("%s: an unknown device: %v", name, err)
			}
			unknown.CDIDevices[0].Name = "../" + class
			_, err := p.create(unknown)
			refused(t, "a device of no name", err)
		}
		p := n.pod(t, handler, func(s *runtimeapi.PodSandboxConfig) {
			s.Annotations = map[string]string{"cdi.k8s.io/x": device}
		})
		if out, _ := p.result(p.container(image, "ls /dev/vendor 2>/dev/null; true")); out != "" {
			t.Errorf("a pod has given itself a device: %q", out)
		}
		r, err := n.cri.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil || !strings.Contains(fmt.Sprint(r.Info), device) {
			t.Errorf("the runtime does not tell of the device: %v, %v", r.GetInfo(), err)
		}
	})
}

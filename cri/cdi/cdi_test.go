package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func write(t *testing.T, dir, name, body string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

const full = `cdiVersion: "1.1.0"
kind: berth.test/gpu
containerEdits:
  env: ["ALL=1"]
  additionalGids: [44]
devices:
- name: one
  containerEdits:
    env: ["ONE=1"]
    deviceNodes: [{path: /dev/one, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /usr/lib/vendor, containerPath: /usr/lib/vendor, options: [ro, nosuid, nodev, bind]}]
    hooks: [{hookName: createContainer, path: /usr/bin/vendor-hook, args: [vendor-hook, configure]}]
    intelRdt: {closID: one}
- name: two
  containerEdits:
    env: ["TWO=1"]
- name: net
  containerEdits:
    netDevices: [{hostInterfaceName: eth9, name: eth1}]
`

func TestRequested(t *testing.T) {
	for name, tc := range map[string]struct {
		field       []string
		annotations map[string]string
		want        []string
		fails       bool
	}{
		"nothing":   {nil, map[string]string{"other": "berth.test/gpu=one"}, nil, false},
		"both":      {[]string{"berth.test/gpu=two"}, map[string]string{"cdi.k8s.io/b": "berth.test/gpu=one,berth.test/gpu=two", "cdi.k8s.io/a": "berth.test/gpu=net"}, []string{"berth.test/gpu=two", "berth.test/gpu=net", "berth.test/gpu=one"}, false},
		"unnamed":   {[]string{""}, nil, nil, true},
		"path":      {[]string{"../etc/passwd"}, nil, nil, true},
		"no device": {nil, map[string]string{"cdi.k8s.io/a": "gpu"}, nil, true},
		"empty":     {nil, map[string]string{"cdi.k8s.io/a": ""}, nil, true},
	} {
		c := &runtimeapi.ContainerConfig{Annotations: tc.annotations}
		for _, f := range tc.field {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: f})
		}
		got, err := Requested(c)
		if (err != nil) != tc.fails || err != nil && !errors.Is(err, ErrInvalid) || err == nil && !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	many := &runtimeapi.ContainerConfig{}
	for i := range maxDevices + 1 {
		many.CDIDevices = append(many.CDIDevices, &runtimeapi.CDIDevice{Name: fmt.Sprintf("berth.test/gpu=%d", i)})
	}
	if _, err := Requested(many); !errors.Is(err, ErrInvalid) {
		t.Errorf("%d devices: %v", len(many.CDIDevices), err)
	}
}

func TestRegistry(t *testing.T) {
	static, dynamic := t.TempDir(), filepath.Join(t.TempDir(), "later")
	r, err := Open([]string{static, dynamic})
	if err != nil {
		t.Fatal(err)
	}
	if names, faults := r.Devices(); len(names) != 0 || len(faults) != 0 {
		t.Errorf("of nothing: %v, %v", names, faults)
	}
	write(t, static, "vendor.yaml", full)
	write(t, static, "broken.json", `{"cdiVersion": "0.6.0", "kind": "nobody"`)
	names, faults := r.Devices() // without a watch, and without being told
	if want := []string{"berth.test/gpu=net", "berth.test/gpu=one", "berth.test/gpu=two"}; !slices.Equal(names, want) || len(faults) != 1 {
		t.Errorf("%v, %v", names, faults)
	}
	_, err = r.Resolve([]string{"berth.test/gpu=one", "berth.test/gpu=three", "other.test/x=y"})
	for _, word := range []string{"berth.test/gpu=three", "other.test/x=y", static, "broken.json"} {
		if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), word) {
			t.Errorf("an unknown device: %v, want %s in it", err, word)
		}
	}
	if strings.Contains(err.Error(), "=one") {
		t.Errorf("a known device is blamed: %v", err)
	}
	if _, err := r.Resolve([]string{"berth.test/gpu=net"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("a network interface: %v", err)
	}
	// The later directory wins.
	if err := os.Mkdir(dynamic, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dynamic, "vendor.yaml", strings.Replace(full, "ONE=1", "ONE=2", 1))
	e, err := r.Resolve([]string{"berth.test/gpu=one"})
	if err != nil || !slices.Contains(e.edits.Env, "ONE=2") {
		t.Errorf("%+v, %v", e, err)
	}
	var none *Registry
	if _, err := none.Resolve([]string{"berth.test/gpu=one"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("without a registry: %v", err)
	}
	if e, err := none.Resolve(nil); err != nil || !e.None() {
		t.Errorf("without a registry and a device: %v, %v", e, err)
	}
}

func TestApply(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "vendor.yaml", full)
	r, err := Open([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, users := range []bool{false, true} {
		e, err := r.Resolve([]string{"berth.test/gpu=one", "berth.test/gpu=two"})
		if err != nil {
			t.Fatal(err)
		}
		s := &specs.Spec{
			Process: &specs.Process{Env: []string{"A=1"}}, Mounts: []specs.Mount{{Destination: "/usr/lib/vendor/deeper"}, {Destination: "/dev"}},
			Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}},
		}
		if users {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
			if err := e.Restage(func(n int, source string) (string, error) { return fmt.Sprintf("/staged/%d%s", n, source), nil }); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Apply(s); err != nil {
			t.Fatal(err)
		}
		if want := []string{"A=1", "ALL=1", "ONE=1", "TWO=1"}; !slices.Equal(s.Process.Env, want) {
			t.Errorf("environment %v", s.Process.Env)
		}
		if !slices.Equal(s.Process.User.AdditionalGids, []uint32{44}) || len(s.Hooks.CreateContainer) != 1 || s.Linux.IntelRdt.ClosID != "one" {
			t.Errorf("groups %v, hooks %+v, cache %+v", s.Process.User.AdditionalGids, s.Hooks, s.Linux.IntelRdt)
		}
		last := s.Linux.Resources.Devices[len(s.Linux.Resources.Devices)-1]
		if !last.Allow || *last.Major != 1 || *last.Minor != 3 || last.Access != "rw" {
			t.Errorf("device rule %+v", last)
		}
		var mounts []string
		for _, m := range s.Mounts {
			mounts = append(mounts, m.Source+" "+m.Destination)
		}
		want := []string{" /dev", "/usr/lib/vendor /usr/lib/vendor", " /usr/lib/vendor/deeper"}
		if users {
			want = []string{" /dev", "/dev/null /dev/one", "/staged/0/usr/lib/vendor /usr/lib/vendor", " /usr/lib/vendor/deeper"}
		}
		if !reflect.DeepEqual(mounts, want) || users != (len(s.Linux.Devices) == 0) {
			t.Errorf("user namespace %v: mounts %q, devices %+v", users, mounts, s.Linux.Devices)
		}
		if slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return slices.Contains(m.Options, "idmap") }) {
			t.Errorf("the runtime is to shift IDs: %+v", s.Mounts)
		}
	}
}

package ociruntime

import (
	"errors"
	"maps"
	"strings"
	"testing"
)

func TestAnnotationsOfAHandler(t *testing.T) {
	bin := Binary{Name: "crun", Path: "/usr/bin/crun"}
	pod := map[string]string{"io.katacontainers.cpus": "2", "run.oci.handler": "krun", "run.oci.keep_original_groups": "1", "other": "pod", "both": "pod", "org.systemd.property.ExecStart": "evil"}
	container := map[string]string{"both": "container", "io.katacontainers.memory": "1", "more": "x"}
	for name, tc := range map[string]struct {
		allowed []string
		want    map[string]string
	}{
		"nothing is":                           {nil, map[string]string{"platform": "p"}},
		"whole names, the container's first":   {[]string{"both", "oth"}, map[string]string{"platform": "p", "both": "container"}},
		"beginnings":                           {[]string{"io.katacontainers.*"}, map[string]string{"platform": "p", "io.katacontainers.cpus": "2", "io.katacontainers.memory": "1"}},
		"everything, but nothing that steers":  {[]string{"*"}, map[string]string{"platform": "p", "io.katacontainers.cpus": "2", "io.katacontainers.memory": "1", "other": "pod", "both": "container", "more": "x"}},
		"what steers only by its name in full": {[]string{"run.oci.*", "run.oci.handler"}, map[string]string{"platform": "p", "run.oci.handler": "krun"}},
	} {
		rt := New(bin, "/r", false, Direct{}).With(Handler{Name: "vm", Annotations: tc.allowed, Defaults: map[string]string{"platform": "p"}})
		for range 2 { // the first call changes nothing
			if got := rt.Annotations(pod, container); !maps.Equal(got, tc.want) {
				t.Errorf("%s: %v, want %v", name, got, tc.want)
			}
		}
	}
	if got := New(bin, "/r", false, Direct{}).Annotations(pod, container); len(got) != 0 {
		t.Errorf("crun by itself sees %v", got)
	}
}

func TestNamesOfHandlers(t *testing.T) {
	rt := New(Binary{Name: "crun", Path: "/opt/c"}, "/r", false, Direct{})
	if rt.Name() != "crun" || rt.Doubted() || rt.With(Handler{Name: "crun"}).Name() != "crun" {
		t.Errorf("%q", rt.Name())
	}
	vm := rt.With(Handler{Name: "vm", Args: []string{"--debug"}})
	if args := strings.Join(vm.GlobalArgs(), " "); args != "--root=/r --debug" {
		t.Errorf("arguments %q", args)
	}
	e := vm.Failed("create", "", errors.New("signal: killed"))
	for _, want := range []string{`crun (runtime handler "vm") failed to create and said nothing (signal: killed)`, "/opt/c --version", "runtime.handlers"} {
		if !strings.Contains(e.Error(), want) {
			t.Errorf("%q lacks %q", e, want)
		}
	}
	if e := vm.Failed("create", "exec: \"x\": executable file not found in $PATH", errors.New("exit 1")); e.Kind != CommandNotFound || !e.OfContainer() {
		t.Errorf("%+v", e)
	}
}

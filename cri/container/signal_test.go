package container

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSignals(t *testing.T) {
	for in, want := range map[string]struct {
		name   string
		number int
	}{
		"": {"RUNTIME_DEFAULT", 15}, "SIGTERM": {"SIGTERM", 15}, "quit": {"SIGQUIT", 3}, "9": {"SIGKILL", 9}, "SIGRTMIN+3": {"SIGRTMINPLUS3", 37},
		"37": {"SIGRTMINPLUS3", 37}, "SIGRTMAX-1": {"SIGRTMAXMINUS1", 63}, "64": {"SIGRTMAX", 64}, "nonsense": {"RUNTIME_DEFAULT", 15}, "99": {"RUNTIME_DEFAULT", 15},
	} {
		s := ParseSignal(in)
		if n := stopSignal(&runtimeapi.ContainerConfig{StopSignal: s}); s.String() != want.name || int(n) != want.number {
			t.Errorf("%q: %v %d, want %v", in, s, n, want)
		}
	}
	for name := range runtimeapi.Signal_value {
		if name == "RUNTIME_DEFAULT" {
			continue
		}
		if n, ok := signalNumber(name); !ok || n < 1 || n > 64 {
			t.Errorf("%s: %d %v", name, n, ok)
		}
	}
}

package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCheckNetwork: what a network cannot do is refused before anything exists.
func TestCheckNetwork(t *testing.T) {
	port := func(p *runtimeapi.PortMapping) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{PortMappings: []*runtimeapi.PortMapping{p}}
	}
	annotated := func(kv ...string) *runtimeapi.PodSandboxConfig {
		c := &runtimeapi.PodSandboxConfig{Annotations: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			c.Annotations[kv[i]] = kv[i+1]
		}
		return c
	}
	for want, configs := range map[string][]*runtimeapi.PodSandboxConfig{
		"": {
			port(&runtimeapi.PortMapping{HostPort: 80, ContainerPort: 80}),
			port(&runtimeapi.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: runtimeapi.Protocol_SCTP, HostIp: "::1"}),
			port(&runtimeapi.PortMapping{ContainerPort: 0}), // not published
			annotated(ingressAnnotation, "1k", egressAnnotation, "1P"),
			annotated(ingressAnnotation, "1.5M"), annotated(),
		},
		"not an IP address":          {port(&runtimeapi.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "host -j ACCEPT"})},
		"numbers from 1 to 65535":    {port(&runtimeapi.PortMapping{HostPort: 65536, ContainerPort: 80}), port(&runtimeapi.PortMapping{HostPort: -1, ContainerPort: 80})},
		"none of TCP, UDP and SCTP":  {port(&runtimeapi.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: 7})},
		"from 1k to 1P bits":         {annotated(ingressAnnotation, "999"), annotated(egressAnnotation, "2P"), annotated(egressAnnotation, "-10M"), annotated(ingressAnnotation, "0")},
		"is not a quantity like 10M": {annotated(ingressAnnotation, "fast"), annotated(egressAnnotation, strings.Repeat("9", 100000)+"x"), annotated(egressAnnotation, "")},
	} {
		for _, c := range configs {
			err := checkNetwork(c)
			if want == "" && err != nil || want != "" && (!errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), want) || len(err.Error()) > 400) {
				t.Errorf("%.200v: %.400v, want %q", c, err, want)
			}
		}
	}
	b, err := bandwidth(map[string]string{ingressAnnotation: "10M", egressAnnotation: "1.5Gi"})
	if err != nil || b != (Bandwidth{10e6, 3 << 29}) {
		t.Errorf("%+v, %v", b, err)
	}
}

// ranged is a network that takes pod ranges.
type ranged struct {
	fileNet
	got []string
}

func (r *ranged) SetPodRanges(_ context.Context, ranges []string) error {
	r.got = ranges
	return nil
}

func TestSetPodRanges(t *testing.T) {
	n := &ranged{}
	s := &Store{cfg: Config{Network: n}}
	if err := s.SetPodRanges(t.Context(), []string{"10.0.0.0/24", "fd00::/64"}); err != nil || !slices.Equal(n.got, []string{"10.0.0.0/24", "fd00::/64"}) {
		t.Errorf("%v, %v", n.got, err)
	}
	s.cfg.Network = n.fileNet
	if err := s.SetPodRanges(t.Context(), []string{"10.0.0.0/24"}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("%v", err)
	}
}

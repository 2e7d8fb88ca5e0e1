package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateResources puts on record what a sandbox's containers may use in all, and
// what the sandbox itself takes beside them; nil keeps what there is. Nothing is
// applied: whoever asks has changed the pod's cgroup already, and a sandbox has
// no process whose limits could be others. It fails with
// errdefs.ErrFailedPrecondition if the sandbox is not ready.
func (s *Store) UpdateResources(ctx context.Context, id ID, overhead, resources *runtimeapi.LinuxContainerResources) error {
	b, err := s.get(id)
	if err != nil {
		return err
	}
	if err := b.take(ctx); err != nil {
		return err
	}
	defer b.give()
	if st := b.status(); !st.Ready {
		return fmt.Errorf("sandbox %s is not ready: %s: %w", id, st.Why, errdefs.ErrFailedPrecondition)
	}
	_, config := b.snapshot()
	next := proto.CloneOf(config)
	if next.Linux == nil {
		next.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	if overhead != nil {
		next.Linux.Overhead = overhead
	}
	if resources != nil {
		next.Linux.Resources = resources
	}
	raw, err := protojson.Marshal(next)
	if err != nil {
		return fmt.Errorf("encoding the sandbox configuration: %w", err)
	}
	if err := s.write(b, func(r *state) { r.Config = raw }); err != nil {
		return err
	}
	b.mu.Lock()
	b.config = next
	b.mu.Unlock()
	return nil
}

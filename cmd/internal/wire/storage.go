package wire

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/admission"
	"github.com/berthd/berth/agent/eviction"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/stats/disk"
)

// storage is disk.Scanner, and the runtime, as agent/eviction wants them.
type storage struct {
	n       *node
	mu      sync.Mutex // one walk at a time: its pace is the node's
	scanner disk.Scanner
}

func (s *storage) Tree(ctx context.Context, path string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, err := s.scanner.Usage(ctx, path)
	return u.Bytes, err
}

// Own walks what the agent makes for a pod: the volumes beside it are measured by name.
func (s *storage) Own(ctx context.Context, uid pod.UID) (int64, error) {
	dir := filepath.Join(s.n.o.RootDir, "pods", string(uid))
	messages, err := s.Tree(ctx, filepath.Join(dir, "containers"))
	if err != nil {
		return messages, err
	}
	var hosts unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "etc-hosts"), &hosts); err != nil && !errors.Is(err, unix.ENOENT) {
		return messages, fmt.Errorf("look at the hosts file of pod %s: %w", uid, err)
	}
	return messages + hosts.Blocks*512, nil
}

// WritableLayer walks what the embedded runtime keeps, and asks an external one.
func (s *storage) WritableLayer(ctx context.Context, id pod.ContainerID) (int64, error) {
	if e := s.n.embedded; e != nil {
		return s.Tree(ctx, e.images.RootfsUpper(string(id)))
	}
	r, err := runtimeapi.NewRuntimeServiceClient(s.n.conn).ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: string(id)})
	if err != nil {
		return 0, fmt.Errorf("ask the container runtime how much container %s has written: %w", id, err)
	}
	return int64(r.GetStats().GetWritableLayer().GetUsedBytes().GetValue()), nil
}

// watchStorage evicts pods that exceed their limits on local storage, until ctx ends.
func (n *node) watchStorage(ctx context.Context) error {
	if n.o.NoStorageLimits {
		return nil
	}
	return eviction.NewWatch(eviction.Config{
		Pods: n.dispatcher, Measure: &storage{n: n}, Exempt: admission.SystemCritical, Events: n.event, Log: n.o.Log.With("part", "eviction"),
	}).Run(ctx)
}

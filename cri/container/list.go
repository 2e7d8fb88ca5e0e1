package container

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podUID is the label by which a kubelet asks for the containers of one pod.
const podUID = "io.kubernetes.pod.uid"

// index finds containers by what never changes of them: ID, sandbox, pod and
// age. It is guarded by the Store's mu.
type index struct {
	byID      map[string]*container
	order     []*container // oldest first
	bySandbox map[string][]*container
	byPod     map[string][]*container
}

func newIndex() index {
	return index{byID: map[string]*container{}, bySandbox: map[string][]*container{}, byPod: map[string][]*container{}}
}

// older orders containers; no two are equal.
func older(a, b *container) int {
	if c := a.created.Compare(b.created); c != 0 {
		return c
	}
	return strings.Compare(a.id, b.id)
}

func insert(all []*container, c *container) []*container {
	at, _ := slices.BinarySearchFunc(all, c, older)
	return slices.Insert(all, at, c)
}

func remove(all []*container, c *container) []*container {
	at, ok := slices.BinarySearchFunc(all, c, older)
	if !ok {
		return all
	}
	return slices.Delete(all, at, at+1)
}

func (x *index) add(c *container) {
	x.byID[c.id] = c
	x.order = insert(x.order, c)
	x.bySandbox[c.sandbox] = insert(x.bySandbox[c.sandbox], c)
	if c.podUID != "" {
		x.byPod[c.podUID] = insert(x.byPod[c.podUID], c)
	}
}

func (x *index) drop(c *container) {
	if x.byID[c.id] != c {
		return
	}
	delete(x.byID, c.id)
	x.order = remove(x.order, c)
	for of, key := range map[*map[string][]*container]string{&x.bySandbox: c.sandbox, &x.byPod: c.podUID} {
		if left := remove((*of)[key], c); len(left) > 0 {
			(*of)[key] = left
		} else {
			delete(*of, key)
		}
	}
}

// find returns the container with an ID, or the only one whose ID begins so.
func (x *index) find(id string) (*container, error) {
	if c, ok := x.byID[id]; ok {
		return c, nil
	}
	var found *container
	for have, c := range x.byID {
		if id != "" && strings.HasPrefix(have, id) {
			if found != nil {
				return nil, fmt.Errorf("container ID %q fits more than one: %w", id, errdefs.ErrInvalidArgument)
			}
			found = c
		}
	}
	if found == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

// candidates are a superset of what f chooses, oldest first: as small as the
// index allows. They are the index's own.
func (x *index) candidates(f Filter) []*container {
	if c, ok := x.byID[f.ID]; ok {
		return []*container{c}
	}
	if in, ok := x.bySandbox[f.SandboxID]; ok && f.SandboxID != "" {
		return in
	}
	if uid, ok := f.Labels[podUID]; ok && uid != "" {
		return x.byPod[uid]
	}
	return x.order
}

// Filter chooses containers; zero fields choose all. IDs may be prefixes.
type Filter struct {
	ID, SandboxID string
	State         *runtimeapi.ContainerState
	Labels        map[string]string
}

func (f Filter) chooses(m *runtimeapi.Container) bool {
	return strings.HasPrefix(m.GetId(), f.ID) && strings.HasPrefix(m.GetPodSandboxId(), f.SandboxID) &&
		(f.State == nil || m.GetState() == *f.State) && hasLabels(m.GetLabels(), f.Labels)
}

// List returns the chosen containers, oldest first. The messages are shared
// with later calls and must not be changed.
func (s *Store) List(f Filter) []*runtimeapi.Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := s.containers.candidates(f)
	var out []*runtimeapi.Container
	if f.State == nil && len(f.Labels) == 0 && f.ID == "" {
		out = make([]*runtimeapi.Container, 0, len(all))
	}
	for _, c := range all {
		if m := c.listed.Load(); m != nil && f.chooses(m) {
			out = append(out, m)
		}
	}
	return out
}

// list makes the container's entry in lists anew. It is kept until the record
// changes, so that a list of thousands costs pointers. The caller holds mu, or
// nobody else knows c yet.
func (c *container) list() {
	if !c.rec.Complete {
		return
	}
	c.listed.Store(&runtimeapi.Container{
		Id: c.id, PodSandboxId: c.rec.SandboxID, Metadata: c.config.GetMetadata(), Image: c.config.GetImage(),
		ImageRef: c.rec.Image.Ref, ImageId: c.rec.Image.ID, State: c.rec.State(), CreatedAt: c.rec.CreatedAt.UnixNano(),
		Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
	})
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// IDs returns the containers of a sandbox, half-made ones too: all that must go
// before the sandbox can.
func (s *Store) IDs(sandboxID string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for _, c := range s.containers.bySandbox[sandboxID] {
		out = append(out, c.id)
	}
	slices.Sort(out)
	return out
}

// lookup is get without prefixes; nil if there is none.
func (s *Store) lookup(id string) *container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.containers.byID[id]
}

// every returns all containers, oldest first.
func (s *Store) every() []*container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.containers.order)
}

// Status returns everything CRI asks of a container.
func (s *Store) Status(id string) (*runtimeapi.ContainerStatus, error) {
	c, err := s.complete(id)
	if err != nil {
		return nil, err
	}
	rec, cfg := c.snapshot()
	st := &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: cfg.GetMetadata(), State: rec.State(), CreatedAt: rec.CreatedAt.UnixNano(),
		Image: cfg.GetImage(), ImageRef: rec.Image.Ref, ImageId: rec.Image.ID, Labels: cfg.GetLabels(),
		Annotations: cfg.GetAnnotations(), Mounts: cfg.GetMounts(), LogPath: rec.LogPath, StopSignal: cfg.GetStopSignal(),
		Resources: &runtimeapi.ContainerResources{Linux: cfg.GetLinux().GetResources()},
		User:      &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: int64(rec.User.UID), Gid: int64(rec.User.GID)}},
	}
	for _, g := range rec.User.Groups {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	if rec.Started {
		st.StartedAt = rec.StartAt.UnixNano()
	}
	if e := rec.Exit; e != nil {
		st.FinishedAt, st.ExitCode, st.Reason, st.Message = e.At.UnixNano(), e.Code, e.Reason, e.Message
	}
	return st, nil
}

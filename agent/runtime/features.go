package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Userns allots ranges of IDs to pods with user namespaces (agent/userns). Every
// method may be called again after any failure.
type Userns interface {
	// Allot gives the pod a range that stays its own until Release, and records it.
	Allot(uid pod.UID) (pod.IDMapping, error)
	// Adopt records a range that a pod was found to have.
	Adopt(uid pod.UID, m pod.IDMapping) error
	Mapping(uid pod.UID) (pod.IDMapping, bool)
	Release(uid pod.UID) error
}

// features are what the runtime says that pods may ask for.
type features struct {
	handlers []*cri.RuntimeHandler
	strict   bool              // supplementalGroupsPolicy
	whyNot   map[string]string // by handler: why it has no user namespaces
}

// features asks the runtime. It is asked for pods that need something only.
func (r *Runtime) features(ctx context.Context) (features, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := r.CRI.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return features{}, fmt.Errorf("ask the runtime what it can do: %w", err)
	}
	f := features{handlers: resp.RuntimeHandlers, strict: resp.GetFeatures().GetSupplementalGroupsPolicy()}
	// Berth's own runtime says why there are no user namespaces; others leave it out.
	var told struct {
		NoUserNamespaces map[string]string `json:"noUserNamespaces"`
	}
	if json.Unmarshal([]byte(resp.Info["info"]), &told) == nil {
		f.whyNot = told.NoUserNamespaces
	}
	return f, nil
}

// of returns the features of a handler; none for one that is not there.
func (f features) of(handler string) *cri.RuntimeHandlerFeatures {
	at := slices.IndexFunc(f.handlers, func(h *cri.RuntimeHandler) bool { return h.Name == handler })
	if at < 0 {
		return nil
	}
	return f.handlers[at].GetFeatures()
}

func ownUsers(p *v1.Pod) bool { return p.Spec.HostUsers != nil && !*p.Spec.HostUsers }

func strictGroups(p *v1.Pod) bool {
	s := p.Spec.SecurityContext
	return s != nil && s.SupplementalGroupsPolicy != nil && *s.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict
}

// supported refuses a pod that asks for what its runtime cannot do, so that
// nothing of it is ignored in silence, and allots what the runtime can.
func (r *Runtime) supported(ctx context.Context, t *task) error {
	if !ownUsers(t.pod) && !strictGroups(t.pod) {
		return nil
	}
	f, err := r.features(ctx)
	if err != nil {
		return err
	}
	if strictGroups(t.pod) && !f.strict {
		return failAs(opSandbox, pod.Invalid, errors.New("SupplementalGroupsPolicy=Strict is not supported in this node"))
	}
	if !ownUsers(t.pod) {
		return nil
	}
	if err := r.ownUsersSupported(t, f); err != nil {
		return err
	}
	_, err = r.Userns.Allot(t.uid)
	return err
}

func (r *Runtime) ownUsersSupported(t *task, f features) error {
	const cannot = "can't set spec.hostUsers: false, "
	switch {
	case r.Userns == nil:
		return failAs(opSandbox, pod.Invalid, errors.New(cannot+"this node allots no user namespaces"))
	case t.pod.Spec.HostNetwork || t.pod.Spec.HostPID || t.pod.Spec.HostIPC:
		return failAs(opSandbox, pod.Invalid, errors.New(cannot+"a pod in the node's network, PID or IPC namespace cannot have a user namespace of its own: remove hostNetwork, hostPID and hostIPC, or hostUsers"))
	case f.of(t.desired.RuntimeHandler).GetUserNamespaces():
		return nil
	}
	why := f.whyNot[t.desired.RuntimeHandler]
	if why == "" {
		why = "an OCI runtime (crun 1.9, runc 1.2 or newer) and file systems that can be mounted with shifted IDs (Linux 6.3 for all of them) are needed; see RuntimeHandlers in the runtime's status"
	}
	if h := t.desired.RuntimeHandler; h != "" {
		return failAs(opSandbox, pod.Invalid, fmt.Errorf("%sRuntimeClass handler %q does not support user namespaces: %s", cannot, h, why))
	}
	return failAs(opSandbox, pod.Invalid, fmt.Errorf("%sruntime does not support user namespaces: %s", cannot, why))
}

// idMapping is the pod's range of IDs, nil for a pod in the node's user
// namespace. Only a new sandbox may get a new range: containers have that of theirs.
func (r *Runtime) idMapping(t *task) (*pod.IDMapping, error) {
	if !ownUsers(t.pod) {
		return nil, nil
	}
	if r.Userns != nil {
		if m, ok := r.Userns.Mapping(t.uid); ok {
			return &m, nil
		}
	}
	return nil, errors.New("the range of IDs of the pod's user namespace is not known: delete and create the pod")
}

// usernsOptions is the mapping in the words of CRI.
func usernsOptions(m *pod.IDMapping) *cri.UserNamespace {
	if m == nil {
		return &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
	}
	return &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: idMappings(m), Gids: idMappings(m)}
}

func idMappings(m *pod.IDMapping) []*cri.IDMapping {
	if m == nil {
		return nil
	}
	return []*cri.IDMapping{{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Length}}
}

// adopt brings the range of a pod that runs back, where its record was lost.
func (r *Runtime) adopt(uid pod.UID, s *cri.PodSandboxStatus) {
	o := s.GetLinux().GetNamespaces().GetOptions().GetUsernsOptions()
	if r.Userns == nil || o.GetMode() != cri.NamespaceMode_POD || len(o.GetUids()) != 1 || s.GetState() != cri.PodSandboxState_SANDBOX_READY {
		return
	}
	if _, known := r.Userns.Mapping(uid); known {
		return
	}
	m := pod.IDMapping{HostID: o.Uids[0].HostId, ContainerID: o.Uids[0].ContainerId, Length: o.Uids[0].Length}
	if err := r.Userns.Adopt(uid, m); err != nil {
		r.Log.Error("the IDs of a running pod cannot be recorded", "uid", uid, "error", err)
	}
}

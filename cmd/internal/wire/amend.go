package wire

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/podspec"
	"github.com/berthd/berth/agent/server"
)

// amend changes running pods through their workers.
func (n *node) amend() server.Amend {
	return server.Amend{
		Resize: n.resize,
		Ephemeral: func(ctx context.Context, uid pod.UID, c v1.EphemeralContainer) error {
			c = defaulted(c)
			return n.dispatcher.Amend(ctx, uid, func(s *plan.State) error { return s.AddEphemeral(c, ephemeralAllowed) })
		},
		Condition: func(ctx context.Context, uid pod.UID, c v1.PodCondition) error {
			return n.dispatcher.Amend(ctx, uid, func(s *plan.State) error { return s.SetCondition(c, time.Now()) })
		},
	}
}

// defaulted fills in what c leaves out, as the API server does.
func defaulted(c v1.EphemeralContainer) v1.EphemeralContainer {
	p := v1.Pod{Spec: v1.PodSpec{EphemeralContainers: []v1.EphemeralContainer{c}}}
	podspec.Default(&p)
	return p.Spec.EphemeralContainers[0]
}

func ephemeralAllowed(next, prev *v1.Pod) error {
	if errs := podspec.ValidateEphemeralContainersUpdate(next, prev); len(errs) > 0 {
		return errs.ToAggregate()
	}
	return nil
}

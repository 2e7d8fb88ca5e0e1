package crash

import (
	"context"
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/node"
)

// isResized asks for more memory until the container has it. Asking again for
// what is there already changes nothing.
func (l *life) isResized() error {
	if _, err := l.Berth("resize", "crash", "-c", "main", "--limits", "memory=72Mi"); err != nil {
		return err
	}
	p, err := l.Pod("crash")
	if err != nil {
		return err
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == "main" && s.Resources != nil && s.Resources.Limits.Memory().String() == "72Mi" {
			return node.Ready(p)
		}
	}
	return fmt.Errorf("main has not been resized: %+v", p.Status.ContainerStatuses)
}

// isDebugged adds an ephemeral container, once, and waits for it to run.
func (l *life) isDebugged() error {
	p, err := l.Pod("crash")
	if err != nil {
		return err
	}
	for _, s := range p.Status.EphemeralContainerStatuses {
		if s.State.Running != nil {
			return nil
		}
	}
	if len(p.Status.EphemeralContainerStatuses) == 0 {
		_, err = l.Berth("debug", "crash", "--image", node.Busybox, "-c", "look", "--", "sh", "-c", "exec sleep 1000")
	}
	return errors.Join(err, errors.New("the ephemeral container does not run yet"))
}

// canMapUsers says whether this host's runtime can give a pod a user namespace.
func canMapUsers(a *node.Agent) bool {
	runtime, _ := a.CRI()
	resp, err := runtime.Status(context.Background(), &runtimeapi.StatusRequest{})
	if err != nil {
		a.T.Fatal(err)
	}
	for _, h := range resp.RuntimeHandlers {
		if h.Name == "" {
			return h.GetFeatures().GetUserNamespaces()
		}
	}
	return false
}

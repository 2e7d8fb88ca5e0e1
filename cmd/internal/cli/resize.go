package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berthd/berth/agent/server"
	"github.com/berthd/berth/cmd/internal/client"
)

// resize is `berth resize` with its flags.
type resize struct {
	*app
	container        string
	whole, wait      bool
	requests, limits string
	timeout          time.Duration
}

func resizeCommand(a *app) *cobra.Command {
	r := &resize{app: a}
	cmd := &cobra.Command{
		Use:   "resize POD [-c CONTAINER | --pod] [--requests cpu=N,memory=N] [--limits cpu=N,memory=N]",
		Short: "Change the cpu and memory of a running pod",
		Long: "Resize changes what a container of a running pod, or the pod as a whole, requests and may use. What is not named stays.\n" +
			"The container goes on running, unless its resizePolicy says RestartContainer for what changes. If there is no room, the\n" +
			"resize waits for it. It lasts as long as the pod: a changed manifest makes a new pod.",
		Example:           "  berth resize web --limits memory=256Mi\n  berth resize web -c nginx --requests cpu=500m --limits cpu=1,memory=1Gi\n  berth resize web --pod --requests cpu=2 --limits cpu=4",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.run(cmd.Context(), a.key(args[0]))
		},
	}
	cmd.Flags().StringVarP(&r.container, "container", "c", "", "container to resize (may be left out if the pod has one)")
	cmd.Flags().BoolVar(&r.whole, "pod", false, "resize the pod as a whole (spec.resources)")
	cmd.Flags().StringVar(&r.requests, "requests", "", "what is requested, as in cpu=500m,memory=64Mi")
	cmd.Flags().StringVar(&r.limits, "limits", "", "what may be used, as in cpu=1,memory=128Mi")
	cmd.Flags().BoolVar(&r.wait, "wait", true, "wait until it is in force, or is known not to be")
	cmd.Flags().DurationVar(&r.timeout, "timeout", time.Minute, "how long to wait")
	_ = cmd.RegisterFlagCompletionFunc("container", a.completeContainers) // the flag exists
	return cmd
}

func (r *resize) run(ctx context.Context, key client.PodKey) error {
	if r.whole && r.container != "" {
		return errors.New("give either --container or --pod")
	}
	var want v1.ResourceRequirements
	var err error
	if want.Requests, err = quantities("--requests", r.requests); err != nil {
		return err
	}
	if want.Limits, err = quantities("--limits", r.limits); err != nil {
		return err
	}
	if len(want.Requests)+len(want.Limits) == 0 {
		return errors.New("say what is to change: --requests, --limits, or both, as in --limits cpu=1,memory=128Mi")
	}
	detail, err := r.client().Pod(ctx, key)
	if err != nil {
		return err
	}
	patch, err := r.patch(&detail.Pod, want)
	if err != nil {
		return err
	}
	generation, err := r.client().Resize(ctx, key, patch)
	if err != nil {
		return err
	}
	if !r.wait {
		fmt.Fprintf(r.Out, "pod/%s resize asked for\n", key.Name)
		return nil
	}
	return r.await(ctx, key, generation)
}

// quantities reads cpu=1,memory=128Mi.
func quantities(flag, text string) (v1.ResourceList, error) {
	out := v1.ResourceList{}
	for _, one := range strings.FieldsFunc(text, func(c rune) bool { return c == ',' }) {
		name, value, ok := strings.Cut(one, "=")
		if name != string(v1.ResourceCPU) && name != string(v1.ResourceMemory) || !ok {
			return nil, fmt.Errorf("%s %s: give cpu=N, memory=N, or both with a comma between them", flag, text)
		}
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %q is no quantity (500m, 1, 64Mi, 1Gi): %w", flag, text, value, err)
		}
		out[v1.ResourceName(name)] = q
	}
	return out, nil
}

// patch is want for the container that was named, or the only one.
func (r *resize) patch(p *v1.Pod, want v1.ResourceRequirements) (server.ResizePatch, error) {
	var out server.ResizePatch
	if r.whole {
		out.Spec.Resources = &want
		return out, nil
	}
	name := r.container
	if name == "" {
		if len(p.Spec.Containers) != 1 {
			return out, fmt.Errorf("pod %s has several containers (%s): name one with -c, or give --pod", p.Name, strings.Join(containerNames(p, true), ", "))
		}
		name = p.Spec.Containers[0].Name
	}
	part := []server.ContainerPatch{{Name: name, Resources: want}}
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			out.Spec.InitContainers = part
			return out, nil
		}
	}
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == name {
			out.Spec.Containers = part
			return out, nil
		}
	}
	return out, fmt.Errorf("pod %s has no container %s that could be resized: it has %s", p.Name, name, strings.Join(containerNames(p, true), ", "))
}

// errResized ends the watch.
var errResized = errors.New("the resize is in force")

// await waits until it is known what becomes of the resize.
func (r *resize) await(ctx context.Context, key client.PodKey, generation int64) error {
	limited, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	err := r.client().Watch(limited, key.Namespace, func(e client.WatchEvent) error {
		if e.Pod.Name != key.Name || e.Type == client.Bookmark {
			return nil
		}
		if e.Type == client.Deleted || ended(&e.Pod) {
			return fmt.Errorf("pod %s ended before it was resized", key.Name)
		}
		return outcome(&e.Pod, generation)
	})
	switch {
	case errors.Is(err, errResized):
		fmt.Fprintf(r.Out, "pod/%s resized\n", key.Name)
		return nil
	case limited.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("pod %s is not resized after %s, and it goes on: `berth why -n %s %s` says where it stands", key, r.timeout, key.Namespace, key.Name)
	}
	return err
}

// outcome is nil while nothing is known, errResized when all is in force, or
// what keeps it from being so.
func outcome(p *v1.Pod, generation int64) error {
	if p.Status.ObservedGeneration < generation {
		return nil
	}
	for _, c := range p.Status.Conditions {
		switch {
		case c.Type == v1.PodResizePending && c.Reason == v1.PodReasonInfeasible:
			return fmt.Errorf("pod %s cannot be resized on this node: %s", p.Name, c.Message)
		case c.Type == v1.PodResizePending:
			return fmt.Errorf("pod %s is resized as soon as there is room: %s", p.Name, c.Message)
		case c.Type == v1.PodResizeInProgress && c.Reason == v1.PodReasonError:
			return fmt.Errorf("the resize of pod %s fails, and is tried again: %s", p.Name, c.Message)
		case c.Type == v1.PodResizeInProgress:
			return nil
		}
	}
	if !inForce(p) {
		return nil // not decided yet
	}
	return errResized
}

// inForce says that what the pod asks for is what it has.
func inForce(p *v1.Pod) bool {
	statuses := map[string]v1.ContainerStatus{}
	for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, s := range list {
			statuses[s.Name] = s
		}
	}
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			s := statuses[list[i].Name]
			if !sameCompute(list[i].Resources.Requests, s.AllocatedResources) || s.Resources != nil && !sameCompute(list[i].Resources.Limits, s.Resources.Limits) {
				return false
			}
		}
	}
	want, have := p.Spec.Resources, p.Status.Resources
	return want == nil || have != nil && sameCompute(want.Requests, have.Requests) && sameCompute(want.Limits, have.Limits)
}

func sameCompute(a, b v1.ResourceList) bool {
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		q := a[name]
		if q.Cmp(b[name]) != 0 {
			return false
		}
	}
	return true
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/cmd/internal/client"
)

// stop is `berth stop` with its flags.
type stop struct {
	*app
	all, force, wait bool
	grace            int64 // seconds; -1: the pod's own
	graceSet         bool
	timeout          time.Duration
}

func stopCommand(a *app) *cobra.Command {
	s := &stop{app: a}
	cmd := &cobra.Command{
		Use:   "stop POD...|--all",
		Short: "End pods gracefully",
		Long: "Stop ends pods that `berth run` started and removes them. A pod of a manifest file or URL ends when that is removed:\n" +
			"stop says which one it is. --force ends it all the same; it comes back when its manifest changes.\n" +
			"--all ends the pods of all namespaces (or of -n), those of manifests too.",
		Example:           "  berth stop web\n  berth stop web db --grace-period 5\n  berth stop --all --timeout 1m",
		ValidArgsFunction: a.completePods(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.graceSet = cmd.Flags().Changed("grace-period")
			return s.run(cmd.Context(), args, cmd.Flags().Changed("namespace"))
		},
	}
	cmd.Flags().BoolVar(&s.all, "all", false, "all pods")
	cmd.Flags().BoolVar(&s.force, "force", false, "also pods that come from a manifest file or URL")
	cmd.Flags().BoolVar(&s.wait, "wait", true, "wait until the pods are gone")
	cmd.Flags().Int64Var(&s.grace, "grace-period", -1, "seconds that a pod has to end (default: the pod's own)")
	cmd.Flags().DurationVar(&s.timeout, "timeout", 0, "how long to wait (0: the longest grace period and 30 s)")
	return cmd
}

func (s *stop) run(ctx context.Context, args []string, namespaceSet bool) error {
	if s.all == (len(args) > 0) {
		return errors.New("name the pods to stop, or give --all (`berth get pods -A` lists them)")
	}
	if s.graceSet && s.grace < 0 {
		return fmt.Errorf("--grace-period %d: give seconds, 0 or more", s.grace)
	}
	var keys []client.PodKey
	for _, arg := range args {
		keys = append(keys, s.key(arg))
	}
	if s.all {
		s.force = true
		namespace := ""
		if namespaceSet {
			namespace = s.namespace
		}
		pods, err := s.client().Pods(ctx, namespace)
		if err != nil {
			return err
		}
		for i := range pods.Items {
			keys = append(keys, client.PodKey{Namespace: pods.Items[i].Namespace, Name: pods.Items[i].Name})
		}
		if len(keys) == 0 {
			fmt.Fprintln(s.Err, "No pods to stop.")
		}
	}
	return s.stopAll(ctx, keys)
}

// leaving is a pod that was asked to end.
type leaving struct {
	uid    string
	forced bool // its record may stay, with all containers ended
}

// stopAll asks all to end, then waits for all. It goes on after a refusal.
func (s *stop) stopAll(ctx context.Context, keys []client.PodKey) error {
	var failures error
	asked := map[client.PodKey]leaving{}
	limit := 30 * time.Second
	for _, k := range keys {
		d, err := s.client().Pod(ctx, k)
		if err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		forced, err := s.ask(ctx, k)
		if client.IsNotFound(err) {
			fmt.Fprintf(s.Out, "pod/%s is gone already\n", k.Name)
			continue
		}
		if err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		asked[k] = leaving{uid: string(d.Pod.UID), forced: forced}
		limit = max(limit, 30*time.Second+s.graceOf(&d.Pod))
		if !s.wait {
			fmt.Fprintf(s.Out, "pod/%s stopping\n", k.Name)
		}
	}
	if !s.wait || len(asked) == 0 {
		return failures
	}
	if s.timeout > 0 {
		limit = s.timeout
	}
	waitCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := s.await(waitCtx, asked)
	if waitCtx.Err() != nil && ctx.Err() == nil && len(asked) > 0 {
		for k := range asked {
			err = fmt.Errorf("pod %s is not gone after %s: `berth why -n %s %s` says what holds it up", k, limit, k.Namespace, k.Name)
		}
	}
	return errors.Join(failures, err)
}

func (s *stop) ask(ctx context.Context, k client.PodKey) (forced bool, err error) {
	var o client.StopOptions
	if s.graceSet {
		grace := time.Duration(s.grace) * time.Second
		o.Grace = &grace
	}
	err = s.client().Stop(ctx, k, o)
	if client.IsConflict(err) && s.force {
		o.Force = true
		return true, s.client().Stop(ctx, k, o)
	}
	return false, err
}

func (s *stop) graceOf(p *v1.Pod) time.Duration {
	switch {
	case s.graceSet:
		return time.Duration(s.grace) * time.Second
	case p.Spec.TerminationGracePeriodSeconds != nil:
		return time.Duration(*p.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	return 30 * time.Second
}

// errAllGone ends the watch.
var errAllGone = errors.New("all pods are gone")

// await takes each pod out of asked once it is gone.
func (s *stop) await(ctx context.Context, asked map[client.PodKey]leaving) error {
	present := map[client.PodKey]bool{}
	begun := false
	gone := func(k client.PodKey) {
		delete(asked, k)
		fmt.Fprintf(s.Out, "pod/%s stopped\n", k.Name)
	}
	err := s.client().Watch(ctx, "", func(e client.WatchEvent) error {
		k := client.PodKey{Namespace: e.Pod.Namespace, Name: e.Pod.Name}
		l, ours := asked[k]
		switch {
		case e.Type == client.Bookmark:
			begun = true
			for k := range asked {
				if !present[k] {
					gone(k)
				}
			}
		case !ours:
		case e.Type == client.Deleted, string(e.Pod.UID) != l.uid, l.forced && ended(&e.Pod):
			gone(k)
		default:
			present[k] = true
		}
		if begun && len(asked) == 0 {
			return errAllGone
		}
		return nil
	})
	if errors.Is(err, errAllGone) {
		return nil
	}
	return err
}

func ended(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

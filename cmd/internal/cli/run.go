package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/client"
)

// run is `berth run` with its flags.
type run struct {
	*app
	files   []string
	remove  bool
	timeout time.Duration
}

func runCommand(a *app) *cobra.Command {
	r := &run{app: a}
	cmd := &cobra.Command{
		Use:   "run -f FILE|DIR|-|URL",
		Short: "Run pods from manifests and follow them until they are ready or completed",
		Long: "Run gives manifests (Pod, PodList, ConfigMap, Secret) to the agent and follows the pods until each is ready, or has\n" +
			"completed if its restartPolicy is Never or OnFailure. Ctrl-C stops following; the pods go on. With --rm the command follows until the pods have completed,\n" +
			"and removes them at its end. A pod's namespace is the one that its manifest names.",
		Example: "  berth run -f web.yaml\n  berth run -f ./manifests --timeout 60s\n  berth run --rm -f job.yaml\n  cat pod.yaml | berth run -f -",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return r.run(cmd.Context()) },
	}
	cmd.Flags().StringArrayVarP(&r.files, "filename", "f", nil, "file, directory, - for standard input, or URL; may be given several times")
	cmd.Flags().BoolVar(&r.remove, "rm", false, "follow until the pods have completed or Ctrl-C, then remove them")
	cmd.Flags().DurationVar(&r.timeout, "timeout", 0, "give up following after this time (0: never)")
	_ = cmd.MarkFlagRequired("filename") // the flag exists
	return cmd
}

func (r *run) run(ctx context.Context) error {
	pods, refused, err := r.apply(ctx)
	if err != nil {
		return err
	}
	var followErr error
	if len(pods) > 0 {
		f := newFollower(r.app, pods)
		f.untilEnd = r.remove
		followErr = r.follow(ctx, f)
		if r.remove {
			// The command's own context may have ended by Ctrl-C: removing goes on without it.
			followErr = errors.Join(followErr, r.removeAll(context.WithoutCancel(ctx), f.keys()))
		}
	}
	if followErr == nil && refused {
		return ExitError{1}
	}
	return followErr
}

// apply hands all manifests over. It returns the pods taken in by UID ("" if the
// agent did not tell), and whether something was refused.
func (r *run) apply(ctx context.Context) (pods map[client.PodKey]string, refused bool, err error) {
	pods = map[client.PodKey]string{}
	for _, from := range r.files {
		manifests, err := r.readManifests(ctx, from)
		if err != nil {
			return nil, false, err
		}
		for _, m := range manifests {
			got, err := r.client().Apply(ctx, m.body)
			if err != nil {
				return nil, false, fmt.Errorf("%s: %w", m.from, err)
			}
			for _, p := range got.Problems {
				p.File, refused = m.from, true
				fmt.Fprintln(r.Err, p.String())
			}
			for _, o := range got.Applied {
				if o.Kind == "Pod" {
					pods[client.PodKey{Namespace: o.Namespace, Name: o.Name}] = o.UID
				} else {
					fmt.Fprintf(r.Out, "%s %s applied\n", o.Kind, strings.TrimPrefix(o.Namespace+"/"+o.Name, "/"))
				}
			}
		}
	}
	if len(pods) == 0 && refused {
		return pods, true, ExitError{1}
	}
	return pods, refused, nil
}

func (r *run) follow(ctx context.Context, f *follower) error {
	followCtx, cancel := ctx, context.CancelFunc(func() {})
	if r.timeout > 0 {
		followCtx, cancel = context.WithTimeout(ctx, r.timeout)
	}
	defer cancel()
	err := f.follow(followCtx)
	switch {
	case ctx.Err() != nil:
		if !r.remove {
			fmt.Fprintf(r.Err, "\nNo longer following; the pods go on. `berth get pods` shows them, `berth stop %s` ends them.\n", f.names())
		}
		return ExitError{130}
	case followCtx.Err() != nil:
		fmt.Fprintf(r.Err, "error: not ready after %s:\n", r.timeout)
		f.explain(false)
		return ExitError{1}
	case err != nil:
		return err
	case f.failed():
		fmt.Fprintln(r.Err, "error: a pod failed:")
		f.explain(true)
		return ExitError{1}
	}
	return nil
}

func (r *run) removeAll(ctx context.Context, keys []client.PodKey) error {
	fmt.Fprintln(r.Err, "Removing the pods ...")
	s := stop{app: r.app, wait: true}
	return s.stopAll(ctx, keys)
}

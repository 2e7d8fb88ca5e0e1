package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/berthd/berth/cmd/internal/client"
)

// debug is `berth debug` with its flags.
type debug struct {
	session
	image, target string
}

func debugCommand(a *app) *cobra.Command {
	d := &debug{session: session{app: a}}
	cmd := &cobra.Command{
		Use:   "debug POD [--image IMAGE] [--target CONTAINER] [-c NAME] [-it] [-- COMMAND [ARG...]]",
		Short: "Add a container to a running pod, to look into it",
		Long: "Debug adds an ephemeral container to a pod that runs: with the pod's network, and with --target also among the processes of\n" +
			"one of its containers, which it may trace. It is never restarted, and stays in the pod's status until the pod is gone.\n" +
			"With -i it is attached to as soon as it runs.",
		Example:           "  berth debug web --image busybox -it -- sh\n  berth debug web --image busybox --target nginx -it -- ps\n  berth debug web --image tools -- tcpdump -c 10",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) > 1 && dash != 1 {
				return errors.New("give one pod, and the command after two dashes: berth debug POD -- COMMAND")
			}
			return d.run(cmd.Context(), a.key(args[0]), args[1:])
		},
	}
	cmd.Flags().StringVar(&d.image, "image", "", "the container's image (default: that of --target, or of the pod's first container)")
	cmd.Flags().StringVar(&d.target, "target", "", "a container of the pod, whose processes are to be seen")
	cmd.Flags().StringVarP(&d.container, "container", "c", "", "name of the new container (default: debugger- and five letters)")
	cmd.Flags().BoolVarP(&d.stdin, "stdin", "i", false, "attach, and pass standard input on")
	cmd.Flags().BoolVarP(&d.tty, "tty", "t", false, "the container's end is a terminal")
	_ = cmd.RegisterFlagCompletionFunc("target", a.completeContainers) // the flag exists
	return cmd
}

func (d *debug) run(ctx context.Context, key client.PodKey, command []string) error {
	detail, err := d.client().Pod(ctx, key)
	if err != nil {
		return err
	}
	c := d.make(&detail.Pod, command)
	if err := d.client().AddEphemeral(ctx, key, c); err != nil {
		return err
	}
	if !d.stdin {
		fmt.Fprintf(d.Out, "container %s added to pod/%s: `berth logs %s -c %s` shows what it writes\n", c.Name, key.Name, key.Name, c.Name)
		return nil
	}
	fmt.Fprintf(d.Err, "Container %s is added to pod/%s.\n", c.Name, key.Name)
	ended, err := d.await(ctx, key, c.Name)
	if err != nil {
		return err
	}
	if ended {
		return d.tellEnd(ctx, key, c.Name)
	}
	s := session{app: d.app, container: c.Name, stdin: true, tty: d.tty}
	if d.tty {
		fmt.Fprintln(d.Err, "If you see no prompt, press enter.")
	}
	err = s.run(ctx, key, func(container string, streams client.Streams) (remotecommand.Executor, error) {
		return d.client().Attach(key, container, streams)
	})
	if client.IsConflict(err) { // it ended between the two
		return d.tellEnd(ctx, key, c.Name)
	}
	return err
}

// make is the container that the flags ask for.
func (d *debug) make(p *v1.Pod, command []string) v1.EphemeralContainer {
	c := v1.EphemeralContainer{TargetContainerName: d.target}
	c.Name, c.Image, c.Command = d.container, d.image, command
	c.Stdin, c.StdinOnce, c.TTY = d.stdin, d.stdin && !d.tty, d.tty // what is piped in has an end
	if c.Name == "" {
		c.Name = "debugger-" + letters(5)
	}
	for i := range p.Spec.Containers {
		if from := &p.Spec.Containers[i]; c.Image == "" && (d.target == "" || d.target == from.Name) {
			c.Image = from.Image
		}
	}
	if d.target != "" { // to look into processes is what it is for
		c.SecurityContext = &v1.SecurityContext{Capabilities: &v1.Capabilities{Add: []v1.Capability{"SYS_PTRACE"}}}
	}
	return c
}

// letters are n random ones that spell no words.
func letters(n int) string {
	const of = "bcdfghjklmnpqrstvwxz2456789"
	out := make([]byte, n)
	for i := range out {
		out[i] = of[rand.IntN(len(of))]
	}
	return string(out)
}

// errHere ends the watch.
var errHere = errors.New("the container is where it was to come")

// await waits until container name runs, or has ended. What keeps it waiting is
// told once for each reason.
func (d *debug) await(ctx context.Context, key client.PodKey, name string) (ended bool, err error) {
	told := ""
	err = d.client().Watch(ctx, key.Namespace, func(e client.WatchEvent) error {
		if e.Pod.Name != key.Name {
			return nil
		}
		if e.Type == client.Deleted {
			return fmt.Errorf("pod %s is gone", key)
		}
		for _, s := range e.Pod.Status.EphemeralContainerStatuses {
			switch {
			case s.Name != name:
			case s.State.Running != nil:
				return errHere
			case s.State.Terminated != nil:
				ended = true
				return errHere
			case s.State.Waiting != nil && s.State.Waiting.Message != "" && s.State.Waiting.Reason != told:
				told = s.State.Waiting.Reason
				fmt.Fprintf(d.Err, "%s waits: %s: %s\n", name, told, s.State.Waiting.Message)
			}
		}
		return nil
	})
	if errors.Is(err, errHere) {
		err = nil
	}
	return ended, err
}

// tellEnd shows what a container that has ended already wrote, and makes its
// exit code this command's.
func (d *debug) tellEnd(ctx context.Context, key client.PodKey, name string) error {
	log, err := d.client().Logs(ctx, key, name, v1.PodLogOptions{})
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err := io.Copy(d.Out, log); err != nil {
		return err
	}
	detail, err := d.client().Pod(ctx, key)
	if err != nil {
		return err
	}
	for _, s := range detail.Pod.Status.EphemeralContainerStatuses {
		if t := s.State.Terminated; s.Name == name && t != nil && t.ExitCode != 0 {
			return ExitError{int(t.ExitCode)}
		}
	}
	return nil
}

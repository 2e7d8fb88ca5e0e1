package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/berthd/berth/cmd/internal/client"
)

// session is what exec and attach share.
type session struct {
	*app
	container  string
	stdin, tty bool
}

func (s *session) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.container, "container", "c", "", "the container (default: the pod's first)")
	cmd.Flags().BoolVarP(&s.stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&s.tty, "tty", "t", false, "the container's end is a terminal")
	_ = cmd.RegisterFlagCompletionFunc("container", s.completeContainers) // the flag exists
}

func execCommand(a *app) *cobra.Command {
	s := &session{app: a}
	cmd := &cobra.Command{
		Use:               "exec POD [-c CONTAINER] [-it] -- COMMAND [ARG...]",
		Short:             "Run a command in a container; its exit code is this command's",
		Example:           "  berth exec web -- ls /\n  berth exec -it web -c nginx -- sh\n  berth exec -i db -- psql < dump.sql",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			if dash == 0 || dash > 1 || len(args) < 2 {
				return errors.New("give one pod and a command: berth exec POD -- COMMAND")
			}
			return s.run(cmd.Context(), a.key(args[0]), func(container string, streams client.Streams) (remotecommand.Executor, error) {
				return a.client().Exec(a.key(args[0]), container, args[1:], streams)
			})
		},
	}
	cmd.Flags().SetInterspersed(true)
	s.flags(cmd)
	return cmd
}

// run connects the streams and returns when the remote end is done.
func (s *session) run(ctx context.Context, key client.PodKey, open func(container string, streams client.Streams) (remotecommand.Executor, error)) error {
	container, err := s.pick(ctx, key, s.container)
	if err != nil {
		return err
	}
	fd, isTerminal := terminal(s.In)
	if s.tty && (!isTerminal || !s.stdin) {
		fmt.Fprintln(s.Err, "No terminal is used (-t): standard input is not one, or -i is missing.")
		s.tty = false
	}
	executor, err := open(container, client.Streams{In: s.stdin, Out: true, Err: !s.tty, TTY: s.tty})
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Stdout: s.Out, Tty: s.tty}
	if s.stdin {
		o.Stdin = s.In
	}
	if !s.tty {
		o.Stderr = s.Err
	} else {
		queue, restore, err := raw(ctx, fd)
		if err != nil {
			return fmt.Errorf("putting the terminal into raw mode: %w", err)
		}
		defer restore()
		o.TerminalSizeQueue = queue
	}
	return remoteError(executor.StreamWithContext(ctx, o))
}

// remoteError makes the remote command's exit code this command's.
func remoteError(err error) error {
	var code utilexec.CodeExitError
	if errors.As(err, &code) {
		return ExitError{code.Code}
	}
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) {
		return unreachable
	}
	return err
}

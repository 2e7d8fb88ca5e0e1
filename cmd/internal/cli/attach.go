package cli

import (
	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/berthd/berth/cmd/internal/client"
)

func attachCommand(a *app) *cobra.Command {
	s := &session{app: a}
	cmd := &cobra.Command{
		Use:               "attach POD [-c CONTAINER] [-it]",
		Short:             "Join the streams of a container's first process",
		Long:              "Attach shows what a container's first process writes from now on, and with -i passes standard input to it\n(the pod's container needs stdin: true, and tty: true for -t).",
		Example:           "  berth attach web\n  berth attach -it shell",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.run(cmd.Context(), a.key(args[0]), func(container string, streams client.Streams) (remotecommand.Executor, error) {
				return a.client().Attach(a.key(args[0]), container, streams)
			})
		},
	}
	s.flags(cmd)
	return cmd
}

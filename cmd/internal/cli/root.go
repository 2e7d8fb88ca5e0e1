package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/berthd/berth/cmd/internal/client"
)

// DefaultSocket is where the agent listens unless told otherwise.
const DefaultSocket = "/run/berth/berth.sock"

// IO are the standard streams of the command.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
}

// ExitError ends the command with Code; whoever returns it has said why already.
type ExitError struct{ Code int }

func (e ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// app is what the subcommands share.
type app struct {
	IO
	version   string
	socket    string
	namespace string
}

// Main runs one command line (without the program's name) and returns its exit
// code. ctx ends when the user wants the command to end.
func Main(ctx context.Context, version string, args []string, std IO) int {
	root := New(version, std)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 130
	}
	fmt.Fprintln(std.Err, "error: "+strings.TrimSpace(err.Error()))
	return 1
}

// New returns the command tree.
func New(version string, std IO) *cobra.Command {
	a := &app{IO: std, version: version}
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Run Kubernetes pods on this machine, without a cluster",
		Long:          "Berth turns this machine into a Kubernetes node: `berth agent` runs pods from manifests, the other commands talk to it.",
		Example:       "  berth check                      # what this machine lacks\n  berth agent --manifest-dir /etc/berth/manifests\n  berth run -f pod.yaml\n  berth get pods -A\n  berth why web",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(std.In)
	root.SetOut(std.Out)
	root.SetErr(std.Err)
	socket := os.Getenv("BERTH_SOCKET")
	if socket == "" {
		socket = DefaultSocket
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "the agent's unix socket; the environment's BERTH_SOCKET changes the default")
	root.PersistentFlags().StringVarP(&a.namespace, "namespace", "n", "default", "namespace of the pods")
	root.AddCommand(agentCommand(a), runtimeCommand(a), runCommand(a), getCommand(a), describeCommand(a), logsCommand(a), execCommand(a), attachCommand(a),
		debugCommand(a), setConditionCommand(a),
		portForwardCommand(a), stopCommand(a), resizeCommand(a), imagesCommand(a), whyCommand(a), checkCommand(a), configCommand(a), versionCommand(a),
		completionCommand(a), purgeCommand(a))
	_ = root.RegisterFlagCompletionFunc("namespace", a.completeNamespaces) // the flag exists: this cannot fail
	return root
}

func (a *app) client() *client.Client { return client.New(a.socket) }

// key reads a pod's name as the user gives it: NAME, pod/NAME.
func (a *app) key(arg string) client.PodKey {
	for _, prefix := range []string{"pod/", "pods/", "po/"} {
		arg = strings.TrimPrefix(arg, prefix)
	}
	return client.PodKey{Namespace: a.namespace, Name: arg}
}

// terminal returns the file descriptor of a stream that is a terminal.
func terminal(stream any) (int, bool) {
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

// The colours.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
)

// paint colours text if standard output is a terminal and the user has nothing against it.
func (a *app) paint(colour, text string) string {
	if _, ok := terminal(a.Out); !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return "\033[" + colour + "m" + text + "\033[0m"
}

package cli

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/client"
)

// versions is what `berth version -o json` prints.
type versions struct {
	Client struct {
		Berth    string `json:"berth"`
		Go       string `json:"go"`
		Platform string `json:"platform"`
	} `json:"client"`
	Agent *client.Version `json:"agent,omitempty"`
}

func versionCommand(a *app) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of this command and of the running agent",
		Example: "  berth version\n  berth version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var v versions
			v.Client.Berth, v.Client.Go, v.Client.Platform = a.version, runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH
			agent, err := a.client().Version(cmd.Context())
			var unreachable *client.UnreachableError
			switch {
			case err == nil:
				v.Agent = &agent
			case !errors.As(err, &unreachable):
				return err
			}
			if done, err := out.object(a.Out, v); done {
				return err
			}
			fmt.Fprintf(a.Out, "Client: berth %s (%s, %s)\n", v.Client.Berth, v.Client.Go, v.Client.Platform)
			if v.Agent == nil {
				fmt.Fprintf(a.Out, "Agent:  none: %v\n", unreachable)
				return nil
			}
			fmt.Fprintf(a.Out, "Agent:  berth %s (%s), process %d on node %s, up %s\n", agent.Berth, agent.Go, agent.Pid, agent.Node, age(agent.Started, time.Now()))
			if r := agent.Runtime; r.Name != "" {
				fmt.Fprintf(a.Out, "        %s %s (%s): %s\n", r.Name, r.Version, r.Path, r.Why)
			}
			return nil
		},
	}
	out.register(cmd, "json", "yaml")
	return cmd
}

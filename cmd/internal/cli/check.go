package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/client"
	"github.com/berthd/berth/cmd/internal/config"
	"github.com/berthd/berth/cmd/internal/hostcheck"
)

func checkCommand(a *app) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Say what this machine lacks or has too old, each with the command that mends it",
		Long:    "Check looks at the programs, kernel features, limits and space that Berth needs, as the agent's configuration says.\nIts exit code is 1 if pods cannot run before something is mended.",
		Example: "  berth check\n  berth check -o json",
		Args:    cobra.NoArgs,
	}
	flags := config.Flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := a.checks(cmd.Context(), flags)
		if err != nil {
			return err
		}
		if done, err := out.object(a.Out, map[string]any{"worst": hostcheck.Worst(all), "checks": all}); err != nil {
			return err
		} else if !done {
			if err := a.printChecks(all); err != nil {
				return err
			}
		}
		if hostcheck.Worst(all) == hostcheck.Failed {
			return ExitError{1}
		}
		return nil
	}
	out.register(cmd, "json", "yaml")
	return cmd
}

func (a *app) checks(ctx context.Context, flags *config.Overrides) ([]hostcheck.Check, error) {
	c, err := flags.Load()
	if err != nil {
		return nil, err
	}
	all := hostcheck.Run(ctx, hostcheck.Options{
		OCIRuntime: c.Runtime.OCIRuntime, Conmon: c.Runtime.Conmon, CNIBinDirs: c.Network.BinDirs, Endpoint: c.Runtime.Endpoint,
		RootDir: c.RootDir, LimitedSwap: c.MemorySwap.SwapBehavior == "LimitedSwap",
		Dirs: map[string]string{c.RootDir: "images and volumes", c.StateDir: "state", c.LogDir: "logs"},
	})
	return append(all, a.checkAgent(ctx)), nil
}

// checkAgent looks for a running agent: none is no fault, one that does not answer is.
func (a *app) checkAgent(ctx context.Context) hostcheck.Check {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c := hostcheck.Check{Group: "Agent", Name: "agent", State: hostcheck.OK}
	v, err := a.client().Version(ctx)
	var unreachable *client.UnreachableError
	switch {
	case err == nil:
		c.Found = fmt.Sprintf("berth %s, process %d, up %s, with %s %s", v.Berth, v.Pid, age(v.Started, time.Now()), v.Runtime.Name, v.Runtime.Version)
		if v.Berth != a.version {
			c.State, c.Found = hostcheck.Warning, c.Found+"; this command is "+a.version
			c.Fix = "systemctl restart berth"
		}
	case errors.As(err, &unreachable):
		c.State, c.Found, c.Fix = hostcheck.Warning, "does not run", "systemctl start berth, or: berth agent"
	default:
		c.State, c.Found, c.Fix = hostcheck.Failed, "does not answer: "+err.Error(), "systemctl restart berth"
	}
	return c
}

func (a *app) printChecks(all []hostcheck.Check) error {
	marks := map[hostcheck.State][2]string{hostcheck.OK: {"✓", green}, hostcheck.Warning: {"!", yellow}, hostcheck.Failed: {"✗", red}}
	widest := 0
	for _, c := range all {
		widest = max(widest, len([]rune(c.Name)))
	}
	group, counts := "", map[hostcheck.State]int{}
	for _, c := range all {
		if c.Group != group {
			group = c.Group
			fmt.Fprintln(a.Out, a.paint(bold, group))
		}
		counts[c.State]++
		m := marks[c.State]
		fmt.Fprintf(a.Out, "  %s %-*s  %s\n", a.paint(m[1], m[0]), widest, c.Name, c.Found)
		if c.Fix != "" {
			fmt.Fprintf(a.Out, "    %*s  fix: %s\n", widest, "", c.Fix)
		}
	}
	verdict := "Pods can run here."
	switch hostcheck.Worst(all) {
	case hostcheck.Warning:
		verdict = fmt.Sprintf("Pods can run here; %d of what is above could be better.", counts[hostcheck.Warning])
	case hostcheck.Failed:
		verdict = fmt.Sprintf("Pods cannot run here before %d of what is above is mended.", counts[hostcheck.Failed])
	}
	_, err := fmt.Fprintln(a.Out, "\n"+verdict)
	return err
}

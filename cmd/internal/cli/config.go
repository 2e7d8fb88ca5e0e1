package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/config"
)

func configCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config check|default",
		Short:   "Check the agent's configuration, or print the default one",
		Example: "  berth config check\n  berth config default > /etc/berth/config.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "check [FILE]",
		Short:   "Tell everything that is wrong with a configuration file, with line and field",
		Example: "  berth config check\n  berth config check ./config.yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := config.DefaultPath
			if len(args) > 0 {
				path = args[0]
			}
			if _, err := config.Load(path); err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "%s is valid.\n", path)
			return nil
		},
	}, &cobra.Command{
		Use:     "default",
		Short:   "Print the default configuration, with comments",
		Example: "  berth config default > /etc/berth/config.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.Out, config.Default())
			return err
		},
	})
	return cmd
}

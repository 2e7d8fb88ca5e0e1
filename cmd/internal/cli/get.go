package cli

import (
	"github.com/spf13/cobra"
)

func getCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get pods|images|events [NAME]",
		Short:   "List pods, images or events",
		Example: "  berth get pods -A\n  berth get pods web -o json\n  berth get pods -w\n  berth get images\n  berth get events",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(getPodsCommand(a), getImagesCommand(a, "images", "image"), getEventsCommand(a))
	return cmd
}

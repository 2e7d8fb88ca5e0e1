package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/config"
	"github.com/berthd/berth/cmd/internal/wire"
)

func purgeCommand(a *app) *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use:   "purge --yes",
		Short: "Remove everything of Berth from this machine; the agent must not be running",
		Long: "Purge ends all pods at once and removes their containers, mounts, namespaces, network and cgroups, and the images,\n" +
			"volumes and records of Berth. Manifests, the configuration and the pods' logs stay. It may be called again.",
		Example: "  systemctl stop berth; berth purge --yes\n  berth purge --yes --root-dir /srv/berth --state-dir /run/berth-test",
		Args:    cobra.NoArgs,
	}
	flags := config.Flags(cmd.Flags())
	cmd.Flags().BoolVar(&yes, "yes", false, "really do it: emptyDir volumes and images are lost")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !yes {
			return errors.New("purge ends all pods and removes images, volumes and records: give --yes if that is meant")
		}
		o, err := a.options(cmd, flags)
		if err != nil {
			return err
		}
		if err := wire.Purge(cmd.Context(), o); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, "Everything of Berth is removed.")
		return nil
	}
	return cmd
}

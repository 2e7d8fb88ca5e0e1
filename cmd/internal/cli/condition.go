package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
)

func setConditionCommand(a *app) *cobra.Command {
	var c v1.PodCondition
	cmd := &cobra.Command{
		Use:   "set-condition POD TYPE=True|False|Unknown",
		Short: "Open or close a readiness gate of a pod",
		Long: "Set-condition sets a condition of a pod that is not the node's own. A pod whose readinessGates name the type is ready\n" +
			"only while it is True.",
		Example:           "  berth set-condition web example.com/load-balancer=True\n  berth set-condition web example.com/load-balancer=False --reason Drained",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, status, ok := strings.Cut(args[1], "=")
			if !ok || name == "" {
				return errors.New("say what is to be set: TYPE=True, TYPE=False or TYPE=Unknown")
			}
			c.Type, c.Status = v1.PodConditionType(name), v1.ConditionStatus(status)
			key := a.key(args[0])
			if err := a.client().SetCondition(cmd.Context(), key, c); err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "pod/%s condition %s=%s set\n", key.Name, c.Type, c.Status)
			return nil
		},
	}
	cmd.Flags().StringVar(&c.Reason, "reason", "", "why, in one CamelCase word")
	cmd.Flags().StringVar(&c.Message, "message", "", "why, in a sentence")
	return cmd
}

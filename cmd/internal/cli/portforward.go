package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/portforward"

	"github.com/berthd/berth/cmd/internal/client"
)

func portForwardCommand(a *app) *cobra.Command {
	var addresses []string
	cmd := &cobra.Command{
		Use:               "port-forward POD [LOCAL:]REMOTE...",
		Short:             "Forward local ports to ports of a pod, until Ctrl-C",
		Example:           "  berth port-forward web 8080:80\n  berth port-forward web :80          # any free local port\n  berth port-forward --address 0.0.0.0 web 8080:80",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forward(cmd.Context(), a.key(args[0]), args[1:], addresses)
		},
	}
	cmd.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "local addresses to listen on")
	return cmd
}

func (a *app) forward(ctx context.Context, key client.PodKey, ports, addresses []string) error {
	remote, err := remotePorts(ports)
	if err != nil {
		return err
	}
	if _, err := a.client().Pod(ctx, key); err != nil {
		return err // before any local port is taken
	}
	dialer, err := a.client().Forward(key, remote)
	if err != nil {
		return err
	}
	forwarder, err := portforward.NewOnAddressesForStreaming(dialer, addresses, ports, ctx.Done(), make(chan struct{}), a.Out, a.Err)
	if err != nil {
		return err
	}
	err = forwarder.ForwardPorts()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, portforward.ErrLostConnectionToPod) || errors.Is(err, io.EOF) {
		return fmt.Errorf("the connection to pod %s is lost: `berth why -n %s %s` says how it is", key, key.Namespace, key.Name)
	}
	return err
}

func remotePorts(ports []string) ([]int, error) {
	var all []int
	for _, p := range ports {
		remote := p
		if i := strings.LastIndexByte(p, ':'); i >= 0 {
			remote = p[i+1:]
		}
		n, err := strconv.Atoi(remote)
		if err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("%q is not a port: give REMOTE, LOCAL:REMOTE or :REMOTE, for example 8080:80", p)
		}
		all = append(all, n)
	}
	return all, nil
}

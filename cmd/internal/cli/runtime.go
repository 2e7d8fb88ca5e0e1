package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cmd/internal/config"
	"github.com/berthd/berth/cmd/internal/wire"
)

func runtimeCommand(a *app) *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "runtime",
		Short: "Serve the container runtime alone, for a kubelet, crictl or another agent",
		Long: "Runtime serves CRI v1 on a unix socket that root alone can open, without an agent, until it is told to end (SIGTERM).\n" +
			"Containers go on without it and are taken over by the next one. Its configuration is the agent's.",
		Example: "  berth runtime --listen unix:///run/berth/cri.sock\n  kubelet --container-runtime-endpoint unix:///run/berth/cri.sock ...\n" +
			"  crictl --runtime-endpoint unix:///run/berth/cri.sock ps",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&listen, "listen", "", "socket of the runtime, unix:///path or a path (default: sockets.cri of the configuration, /run/berth/cri.sock)")
	flags := config.RuntimeFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := flags.Load()
		if err != nil {
			return err
		}
		o := c.Options(c.Logger(a.Err), a.version)
		if listen != "" {
			if o.CRISocket, err = socketPath(listen); err != nil {
				return fmt.Errorf("--listen: %w", err)
			}
		}
		slog.SetDefault(o.Log)
		return serveRuntime(cmd.Context(), o)
	}
	return cmd
}

// serveRuntime serves until ctx ends, and keeps systemd told, if there is one.
func serveRuntime(ctx context.Context, o wire.Options) error {
	conn, err := grpc.NewClient("unix://"+o.CRISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to the own socket %s: %w", o.CRISocket, err)
	}
	defer conn.Close()
	self := runtimeapi.NewRuntimeServiceClient(conn)
	watching, cancel := context.WithCancel(ctx)
	var watchdog sync.WaitGroup
	defer watchdog.Wait()
	defer cancel()
	err = wire.RunRuntime(ctx, o, func() {
		notify(o.Log, daemon.SdNotifyReady)
		watchdog.Go(func() {
			keepAlive(watching, o.Log, func(ctx context.Context) error {
				_, err := self.Version(ctx, &runtimeapi.VersionRequest{})
				return err
			})
		})
	})
	notify(o.Log, daemon.SdNotifyStopping)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil // told to end
	}
	return err
}

// socketPath is the path of a unix socket, given as unix:///path or as a path.
func socketPath(s string) (string, error) {
	path, isURL := strings.CutPrefix(s, "unix://")
	if scheme, _, found := strings.Cut(s, "://"); found && !isURL {
		return "", fmt.Errorf("%q is a socket of the kind %s; only unix sockets are served: unix:///path", s, scheme)
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q is not an absolute path: write unix:///run/berth/cri.sock", s)
	}
	return filepath.Clean(path), nil
}

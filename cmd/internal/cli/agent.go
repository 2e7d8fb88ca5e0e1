package cli

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/internal/client"
	"github.com/berthd/berth/cmd/internal/config"
	"github.com/berthd/berth/cmd/internal/wire"
)

func agentCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the node agent",
		Long: "Agent runs the pods of the manifests and of `berth run` until it is told to end (SIGTERM). Pods go on without it and\n" +
			"are taken over by the next one. Its configuration is " + config.DefaultPath + ", which flags override.",
		Example: "  berth agent\n  berth agent --manifest-dir ./manifests --log-level debug\n  systemctl enable --now berth",
		Args:    cobra.NoArgs,
	}
	flags := config.Flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := a.options(cmd, flags)
		if err != nil {
			return err
		}
		// What a library logs through the default logger goes the same way.
		slog.SetDefault(o.Log)
		return a.runAgent(cmd.Context(), o)
	}
	return cmd
}

// options are the agent's, of the file and the flags; --socket wins over both.
func (a *app) options(cmd *cobra.Command, flags *config.Overrides) (wire.Options, error) {
	c, err := flags.Load()
	if err != nil {
		return wire.Options{}, err
	}
	o := c.Options(c.Logger(a.Err), a.version)
	if cmd.Flags().Changed("socket") {
		o.Socket = a.socket
	}
	return o, nil
}

// runAgent runs the agent until ctx ends, and keeps systemd told, if there is one.
func (a *app) runAgent(ctx context.Context, o wire.Options) error {
	watching, cancel := context.WithCancel(ctx)
	var watchdog sync.WaitGroup
	defer watchdog.Wait()
	defer cancel()
	err := wire.Run(ctx, o, func() {
		notify(o.Log, daemon.SdNotifyReady)
		self := client.New(o.Socket)
		watchdog.Go(func() {
			keepAlive(watching, o.Log, func(ctx context.Context) error { _, err := self.Version(ctx); return err })
		})
	})
	notify(o.Log, daemon.SdNotifyStopping)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil // told to end
	}
	return err
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}

// keepAlive feeds systemd's watchdog as long as ask answers on the program's own
// socket: one that hangs is restarted.
func keepAlive(ctx context.Context, log *slog.Logger, ask func(context.Context) error) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked, cancel := context.WithTimeout(ctx, every/3)
		err := ask(asked)
		cancel()
		if err == nil {
			notify(log, daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error("no answer on the own socket: systemd's watchdog is not fed", "error", err)
		}
	}
}

package wire

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/agent/cgroup"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/server"
)

// RunRuntime serves the embedded CRI runtime alone on o.CRISocket, until ctx ends
// or a part of it fails. ready is called once the runtime answers; it must not
// block. Containers go on when RunRuntime returns, and the next one, or an agent
// with the same directories, takes them over.
func RunRuntime(ctx context.Context, o Options, ready func()) error {
	if err := prepareDirs(o); err != nil {
		return err
	}
	systemd := systemdCgroups(o)
	e, err := openEmbedded(ctx, o, systemd)
	if err != nil {
		return err
	}
	defer e.close()
	s, err := e.serveCRI(o, systemd, e.streaming)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, f := range e.loops(s, o.CRISocket) {
		g.Go(func() error {
			if err := f(gctx); !gone(gctx, err) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error { e.containers.Run(); return nil })
	g.Go(func() error {
		if server.Answers(gctx, o.CRISocket) {
			ready()
		}
		return nil
	})
	return g.Wait()
}

// loops are what must run for the embedded runtime to be alive, beside
// containers.Run, which ends with the monitor.
func (e *embedded) loops(s *server.Server, socket string) []func(context.Context) error {
	return []func(context.Context) error{
		e.monitor.Run, e.runNetwork, e.streaming.Run, e.reporter.Run, e.imports.Run,
		func(ctx context.Context) error { return s.Serve(ctx, socket) },
	}
}

// prepareDirs makes the directories of root and state. Where the state directory
// would be on a disk (no systemd, no tmpfs at /run) it gets a tmpfs of its own:
// what is boot-scoped needs no disk.
func prepareDirs(o Options) error {
	for _, d := range []string{o.RootDir, o.StateDir} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("make the directory %s: %w", d, err)
		}
	}
	return mountns.Volatile(o.StateDir, o.Log)
}

// systemdCgroups tells whether systemd makes the cgroups: by configuration, or
// because it is this host's init.
func systemdCgroups(o Options) bool {
	return o.CgroupDriver == string(cgroup.Systemd) || o.CgroupDriver == "" && systemdRuns()
}

// systemdRuns tells whether systemd is this host's init.
func systemdRuns() bool {
	i, err := os.Lstat("/run/systemd/system")
	return err == nil && i.IsDir()
}

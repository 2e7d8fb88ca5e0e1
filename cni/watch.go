package cni

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settleTime is how long after the last change of a configuration directory it
	// is read: a conflist and what it refers to are often written together.
	settleTime = 100 * time.Millisecond
	// gcEvery is how many rounds pass between two GCs of plugins.
	gcEvery = 20
)

// Run follows the configuration and plugin directories, and in rounds, the
// first at once, collects what was left behind, asks plugins for their STATUS
// and heals the default network, until ctx ends. sandboxes is as for GC.
func (n *Network) Run(ctx context.Context, sandboxes func() []string) error {
	var wg sync.WaitGroup
	wg.Go(func() { n.rounds(ctx, sandboxes) })
	n.follow(ctx)
	wg.Wait()
	return nil
}

// rounds keeps the one timer of the network.
func (n *Network) rounds(ctx context.Context, sandboxes func() []string) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := 0 // rounds until the next GC of plugins
	if time.Since(time.Unix(0, n.collected.Load())) < n.cfg.Period {
		due = gcEvery // the start has just done it
	}
	for next := time.Now(); ; timer.Reset(time.Until(next)) {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
			n.refresh(ctx)
			continue
		case <-timer.C:
		}
		if n.problem.Load() != nil {
			n.reload(ctx) // the default network could not be set up: perhaps it can now
		}
		n.refresh(ctx)
		due = n.round(ctx, sandboxes, due)
		wait := n.cfg.Period
		if v := n.health.last.Load(); v == nil || v.err != nil {
			wait = min(wait, unreadyPeriod)
		}
		next = time.Now().Add(wait)
	}
}

// round is one look at everything; it returns in how many rounds plugins are to
// collect.
func (n *Network) round(ctx context.Context, sandboxes func() []string, due int) int {
	collect := func() error { return n.collect(ctx, sandboxes) }
	if due <= 0 {
		collect = func() error { return n.GC(ctx, sandboxes) }
		due = gcEvery
	} else if n.own.retiring() {
		if err := n.retire(ctx); err != nil {
			n.cfg.Log.Debug("bridges of earlier ranges stay", "error", err)
		}
	}
	if err := collect(); err != nil && ctx.Err() == nil {
		n.cfg.Log.Warn("what sandboxes have left behind in the network could not all be released; the next round tries again", "error", err)
		due = min(due, 2)
	}
	if err := n.heal(ctx); err != nil && ctx.Err() == nil {
		n.cfg.Log.Warn("the default network could not be looked after; the next round tries again", "error", err)
	}
	return due - 1
}

// nudge makes the next round come at once.
func (n *Network) nudge() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// follow reads the configuration anew as it changes. A directory that does not
// exist is awaited through its nearest existing parent.
func (n *Network) follow(ctx context.Context) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		n.poll(ctx, err)
		return
	}
	defer w.Close()
	n.watch(w)
	n.reload(ctx)
	n.nudge()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.Events:
			if !ok {
				return
			}
			if n.concerns(e.Name) {
				timer.Reset(settleTime)
			}
		case err := <-w.Errors:
			n.cfg.Log.Warn("following the network configuration", "error", err)
			timer.Reset(settleTime)
		case <-timer.C:
			n.watch(w)
			n.reload(ctx)
			n.nudge()
		}
	}
}

// poll reads the configuration in every period, for want of inotify instances.
func (n *Network) poll(ctx context.Context, why error) {
	n.cfg.Log.Warn("changes of the network configuration are seen late: raise fs.inotify.max_user_instances", "error", why)
	ticker := time.NewTicker(n.cfg.Period)
	defer ticker.Stop()
	for {
		n.reload(ctx)
		n.nudge()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// watch follows the directories of configurations, those below them that hold a
// network's plugins, and those of programs: the network is ready when its
// plugins come.
func (n *Network) watch(w *fsnotify.Watcher) {
	var dirs []string
	for _, dir := range n.cfg.ConfDirs {
		for d := dir; ; d = filepath.Dir(d) {
			if isDir(d) {
				dirs = append(dirs, d)
				break
			}
			if d == filepath.Dir(d) {
				break
			}
		}
		if cur := n.current.Load(); cur != nil && isDir(filepath.Join(dir, cur.list.Name)) {
			dirs = append(dirs, filepath.Join(dir, cur.list.Name))
		}
	}
	for _, dir := range n.cfg.BinDirs {
		if isDir(dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, d := range dirs {
		if err := w.Add(d); err != nil {
			n.cfg.Log.Warn("following a directory", "directory", d, "error", err)
		}
	}
}

// concerns tells whether what happened to path, in a followed directory, can
// matter: the parent of one that does not exist may be a busy one.
func (n *Network) concerns(path string) bool {
	within := func(dir string) bool { return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") }
	for _, dir := range n.cfg.ConfDirs {
		if within(dir) || strings.HasPrefix(dir, path+"/") {
			return true
		}
	}
	return slices.ContainsFunc(n.cfg.BinDirs, within)
}

func isDir(path string) bool {
	i, err := os.Stat(path)
	return err == nil && i.IsDir()
}

package cni

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long after the last change of a configuration directory it is
// read: a conflist and what it refers to are often written together.
const settle = 100 * time.Millisecond

// Run follows the configuration directories until ctx ends. A directory that
// does not exist is awaited through its nearest existing parent.
func (n *Network) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		// Without inotify instances the network goes on as it is; a restart reads it anew.
		n.cfg.Log.Warn("network configuration is not followed: raise fs.inotify.max_user_instances", "error", err)
		<-ctx.Done()
		return nil
	}
	defer w.Close()
	n.watch(w)
	n.reload()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return nil
			}
			timer.Reset(settle)
		case err := <-w.Errors:
			n.cfg.Log.Warn("following the network configuration", "error", err)
			timer.Reset(settle)
		case <-timer.C:
			n.watch(w)
			n.reload()
		}
	}
}

func (n *Network) watch(w *fsnotify.Watcher) {
	for _, dir := range n.cfg.ConfDirs {
		for d := dir; ; d = filepath.Dir(d) {
			if i, err := os.Stat(d); err == nil && i.IsDir() {
				if err := w.Add(d); err != nil {
					n.cfg.Log.Warn("following a directory", "directory", d, "error", err)
				}
				break
			}
			if d == filepath.Dir(d) {
				break
			}
		}
	}
}

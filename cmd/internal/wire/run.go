package wire

import (
	"context"
	"sync"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/source"
	"github.com/berthd/berth/agent/status"
)

// openSources makes the set of manifests. Its deliveries go to the dispatcher,
// which exists by the time that it runs.
func (n *node) openSources() (*source.Set, error) {
	o := n.o
	cfg := source.Config{
		Node: o.NodeName, Root: o.RootDir, Logger: o.Log,
		Paths:   append(append([]string{}, o.ManifestDirs...), o.ManifestFiles...),
		Stdin:   o.Stdin,
		Deliver: func(from pod.Source, pods []pod.Desired) { n.dispatcher.Update(from, pods) },
	}
	for _, u := range o.ManifestURLs {
		cfg.URLs = append(cfg.URLs, source.URL{Address: u, Header: o.ManifestHeader})
	}
	return source.New(cfg)
}

// Run runs the agent until ctx ends or a part of it fails. ready is called once,
// when the agent can be asked for its pods or says which runtime it waits for; it
// must not block. Pods go on when Run returns.
func Run(ctx context.Context, o Options, ready func()) error {
	n := &node{o: o}
	defer n.close()
	ready = sync.OnceFunc(ready)
	if err := n.connect(ctx, ready); err != nil {
		return err
	}
	if err := n.open(ctx); err != nil {
		return err
	}
	set, err := n.openSources()
	if err != nil {
		return err
	}
	store := status.New(n.o.NodeName)
	if err := n.openAgent(ctx, set, Sink{Publish: store.Set, Event: store.Event}); err != nil {
		return err
	}
	if err := n.restore(ctx); err != nil {
		return err
	}
	api := n.serveAPI(set, store, ready)
	return n.run(ctx, set.Run, n.rotateLogs, n.watchStorage, func(ctx context.Context) error { return api.Serve(ctx, n.o.Socket) })
}

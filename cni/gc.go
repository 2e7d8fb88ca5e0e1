package cni

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	// gcTime bounds the GC of all plugins of a network: new pods wait for it.
	gcTime = 10 * time.Second
	// gateTime is how long GC waits for calls of plugins to end, and new ones for it.
	gateTime = 2 * time.Second
)

// GC detaches every recorded sandbox that sandboxes does not return, tells
// plugins that speak CNI 1.1 which attachments are valid, and takes back what of
// the default network nobody holds any more. It goes on after a failure and
// returns all. sandboxes is asked after the records have been read, and must
// know a sandbox from before its Add until after its Delete; nil: there are none.
// What is being attached or detached meanwhile is left alone.
func (n *Network) GC(ctx context.Context, sandboxes func() []string) error {
	err := n.collect(ctx, sandboxes)
	err = errors.Join(err, n.own.sweepPorts(ctx, n.held), n.retire(ctx), n.tellPlugins(ctx))
	if err == nil {
		n.collected.Store(time.Now().UnixNano())
	}
	return err
}

// collect is what of GC costs nothing where nothing is left behind.
func (n *Network) collect(ctx context.Context, sandboxes func() []string) error {
	ids, err := n.records.list()
	errs := []error{err}
	keep := map[string]bool{}
	if sandboxes != nil {
		for _, id := range sandboxes() {
			keep[id] = true
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ids {
		if keep[id] {
			continue
		}
		unlock := n.sandboxes.try(id)
		if unlock == nil {
			continue // the ordinary way is at work on it
		}
		wg.Go(func() {
			defer unlock()
			err := n.detach(ctx, id, "")
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	errs = append(errs, n.records.dropTemporaries(&n.sandboxes), n.own.reclaim(ctx, n.held))
	return errors.Join(errs...)
}

// held are the sandboxes that have a record.
func (n *Network) held() (map[string]bool, error) {
	ids, err := n.records.list()
	out := map[string]bool{}
	for _, id := range ids {
		out[id] = true
	}
	return out, err
}

// tellPlugins calls GC of the network in use, if it is of CNI 1.1. The
// specification wants that no ADD or DEL runs beside it; while one does that
// takes its time, GC waits for another round.
func (n *Network) tellPlugins(ctx context.Context) error {
	cur := n.current.Load()
	if cur == nil || cur.list.DisableGC || !cur.speaks("1.1.0") {
		return nil
	}
	open, err := n.alone(ctx)
	if err != nil {
		return err
	}
	defer open()
	attached, err := n.attachedTo(cur.list.Name)
	if err != nil {
		return asError("GC", cur.list.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, min(gcTime, n.cfg.Timeout))
	defer cancel()
	// The first is how libcni 1.2 spelled it, and what plugins of then read.
	valid := map[string]any{"cni.dev/attachments": attached, "cni.dev/valid-attachments": attached}
	var errs []error
	for _, p := range cur.list.Plugins {
		if spoken, err := n.spokenBy(ctx, p.Network.Type); err == nil && !slices.Contains(spoken, cur.list.CNIVersion) {
			continue // STATUS tells
		}
		if err := n.verb(ctx, cur, p, "GC", valid); err != nil && !unspoken(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n *Network) alone(ctx context.Context) (open func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, gateTime)
	defer cancel()
	if open = n.gate.alone(ctx); open == nil {
		return nil, &Error{NotReady, "GC", errors.New("put off: plugins are at work on pods; the next round tries again")}
	}
	return open, nil
}

// attachedTo lists the attachments to a network. An unreadable record may be one.
func (n *Network) attachedTo(network string) ([]types.GCAttachment, error) {
	ids, err := n.records.list()
	attached := []types.GCAttachment{}
	for _, id := range ids {
		if x, err := n.records.peek(id); err != nil || x != nil && x.Network == network {
			attached = append(attached, types.GCAttachment{ContainerID: id, IfName: interfaceName})
		}
	}
	return attached, err
}

// retire takes the bridges of earlier ranges off the host that no pod is on any more.
func (n *Network) retire(ctx context.Context) error {
	if !n.own.retiring() {
		return nil
	}
	open, err := n.alone(ctx)
	if err != nil {
		return err
	}
	defer open()
	n.choosing.Lock()
	defer n.choosing.Unlock()
	ids, err := n.records.list()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, id := range ids {
		x, err := n.records.peek(id)
		if err != nil {
			return fmt.Errorf("whether bridges of earlier ranges are still in use: %w", err)
		}
		if x != nil && x.Owned {
			used[x.bridge()] = true
		}
	}
	return n.own.dropRetired(ctx, used)
}

func joinDirs(dirs []string) string { return strings.Join(dirs, string(filepath.ListSeparator)) }

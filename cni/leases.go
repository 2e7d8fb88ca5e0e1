package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/failpoint"
)

// leases returns the files of addresses that no sandbox in held has.
func (o *ownNetwork) leases(held map[string]bool) ([]string, error) {
	dir := filepath.Join(o.leaseDir(), ownName)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var leaked []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue // last_reserved_ip.N, lock
		}
		body, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // released meanwhile
		}
		if err != nil {
			return leaked, err
		}
		// The plugin makes the file and then writes into it: a kill between leaves it empty.
		id, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
		if !held[strings.TrimSpace(id)] {
			leaked = append(leaked, filepath.Join(dir, e.Name()))
		}
	}
	return leaked, err
}

// reclaim frees the addresses that no sandbox has. A record is written before
// its lease, and held is read while the plugin's own lock keeps leases from
// being made: one that has no record then is nobody's.
func (o *ownNetwork) reclaim(ctx context.Context, held func() (map[string]bool, error)) error {
	all, err := held()
	if err != nil {
		return err
	}
	if leaked, err := o.leases(all); err != nil || len(leaked) == 0 {
		return err // mostly so, and without the lock
	}
	unlock, err := o.lockLeases(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if all, err = held(); err != nil {
		return err
	}
	leaked, err := o.leases(all)
	for _, path := range leaked {
		failpoint.Hit("cni/lease-reclaim")
		if e := os.Remove(path); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// lockLeases takes the host-local plugin's own lock.
func (o *ownNetwork) lockLeases(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(o.leaseDir(), ownName, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock %s, which the host-local plugin holds: %w", path, errors.Join(err, ctx.Err()))
		}
	}
}

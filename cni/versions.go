package cni

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
)

// versionTime bounds a plugin's answer to VERSION.
const versionTime = 5 * time.Second

// versions remembers what each plugin answered to VERSION, for as long as its
// program is the same file.
type versions struct {
	mu    sync.Mutex
	known map[string]spoken
}

type spoken struct {
	size     int64
	modified time.Time
	versions []string
}

func (v *versions) of(path string) ([]string, bool) {
	i, err := os.Stat(path)
	if err != nil {
		return nil, false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.known[path]
	return s.versions, ok && s.size == i.Size() && s.modified.Equal(i.ModTime())
}

func (v *versions) keep(path string, i os.FileInfo, answer []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil {
		v.known = map[string]spoken{}
	}
	v.known[path] = spoken{i.Size(), i.ModTime(), answer}
}

// spokenBy returns the versions of CNI that a plugin speaks. A program that
// cannot tell is an error, and asked again the next time.
func (n *Network) spokenBy(ctx context.Context, plugin string) ([]string, error) {
	path, err := n.exec.FindInPath(plugin, n.cfg.BinDirs)
	if err != nil {
		return nil, err
	}
	if answer, ok := n.versions.of(path); ok {
		return answer, nil
	}
	i, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, min(versionTime, n.cfg.Timeout))
	defer cancel()
	told, err := invoke.GetVersionInfo(ctx, path, n.exec)
	if err != nil {
		return nil, err
	}
	n.versions.keep(path, i, told.SupportedVersions())
	return told.SupportedVersions(), nil
}

// usable returns the network in use, its version negotiated with its plugins.
func (n *Network) usable(ctx context.Context) (*network, error) {
	cur := n.current.Load()
	if cur == nil {
		return nil, n.unready()
	}
	if len(cur.offers) == 0 {
		return cur, nil
	}
	v, err := n.negotiate(ctx, cur)
	if err != nil {
		return nil, err
	}
	list, err := settle(cur.list, v)
	if err != nil {
		return nil, &Error{InvalidConf, "VERSION", fmt.Errorf("network %q: %w", cur.list.Name, err)}
	}
	settled := &network{list: list, path: cur.path}
	if n.current.CompareAndSwap(cur, settled) {
		n.cfg.Log.Info("version of CNI negotiated", "network", list.Name, "version", v)
	}
	return settled, nil
}

// negotiate chooses the newest version that the configuration offers and all its
// plugins speak. A plugin that is there and does not tell is taken to speak all.
func (n *Network) negotiate(ctx context.Context, cur *network) (string, error) {
	offers := slices.Clone(cur.offers)
	for _, p := range cur.list.Plugins {
		spoken, err := n.spokenBy(ctx, p.Network.Type)
		if CodeOf(err) == Missing || ctx.Err() != nil {
			return "", asError("VERSION", cur.list.Name, err)
		}
		if err != nil {
			n.cfg.Log.Warn("a plugin does not tell which versions of CNI it speaks", "plugin", p.Network.Type, "error", err)
			continue
		}
		offers = slices.DeleteFunc(offers, func(v string) bool { return !slices.Contains(spoken, v) })
		if len(offers) == 0 {
			return "", mismatch(cur, p.Network.Type, strings.Join(cur.offers, ", "), spoken)
		}
	}
	return offers[0], nil
}

func mismatch(cur *network, plugin, wants string, spoken []string) *Error {
	return &Error{InvalidConf, "VERSION", fmt.Errorf("network %q (%s): plugin %s speaks CNI %s and the configuration, with the plugins before it, wants %s: install another version of the plugin, or change cniVersion",
		cur.list.Name, cur.path, plugin, strings.Join(spoken, ", "), wants)}
}

// mismatched says which plugin of cur is known not to speak its version; nil if none is.
func (n *Network) mismatched(cur *network) error {
	for _, p := range cur.list.Plugins {
		path, err := n.exec.FindInPath(p.Network.Type, n.cfg.BinDirs)
		if err != nil {
			return asError("STATUS", cur.list.Name, err)
		}
		if spoken, ok := n.versions.of(path); ok && cur.list.CNIVersion != "" && len(cur.offers) == 0 && !slices.Contains(spoken, cur.list.CNIVersion) {
			return mismatch(cur, p.Network.Type, cur.list.CNIVersion, spoken)
		}
	}
	return nil
}

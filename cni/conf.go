package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// confLimit bounds a network configuration file.
const confLimit = 1 << 20

// network is a usable configuration and where it came from. It is immutable.
type network struct {
	list  *libcni.NetworkConfigList
	path  string
	owned bool // Berth's own default network
	// offers are the versions of CNI that the configuration leaves to choose from,
	// until one has been negotiated with the plugins; none if it names one.
	offers []string
	// forNeeds, of the default network, are its lists: the programs that a sandbox
	// does not need are not run, and most need one.
	forNeeds map[needs]*libcni.NetworkConfigList
}

// needs are what a sandbox wants of its network beyond an address.
type needs struct{ ports, bandwidth bool }

// listFor is the list of plugins for a sandbox.
func (n *network) listFor(r Request) *libcni.NetworkConfigList {
	if list, ok := n.forNeeds[needs{len(r.PortMappings) > 0, r.Bandwidth != nil}]; ok {
		return list
	}
	return n.list
}

// speaks tells whether the configuration is of a version of at least v.
func (n *network) speaks(v string) bool {
	ok, err := version.GreaterThanOrEqualTo(n.list.CNIVersion, v)
	return err == nil && ok
}

// plugins names every program that the network needs, once.
func (n *network) plugins() []string {
	var names []string
	for _, p := range n.list.Plugins {
		for _, name := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// load returns the first valid configuration of dirs in sorted order, as every
// CNI runtime does. problems name the files that were passed over.
func load(dirs []string) (n *network, problems []error) {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !os.IsNotExist(err) {
				problems = append(problems, &Error{InvalidConf, "read configuration", err})
			}
			continue
		}
		var names []string
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".conf", ".conflist", ".json":
				names = append(names, e.Name())
			}
		}
		sort.Strings(names)
		for _, name := range names {
			path := filepath.Join(dir, name)
			found, err := parse(path)
			if err != nil {
				problems = append(problems, &Error{InvalidConf, "read configuration", fmt.Errorf("%s: %w", path, err)})
				continue
			}
			return found, problems
		}
	}
	return nil, problems
}

// parse reads a conflist, or a single configuration as a list of one.
func parse(path string) (*network, error) {
	body, err := readConf(path)
	if err != nil {
		return nil, err
	}
	single := !strings.HasSuffix(path, ".conflist")
	if single {
		if body, err = asList(body); err != nil {
			return nil, err
		}
	}
	list, err := libcni.NetworkConfFromBytes(body)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err
	}
	if !list.LoadOnlyInlinedPlugins && !single {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), list.Name)
		if err != nil {
			return nil, err
		}
		list.Plugins = append(list.Plugins, more...)
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("the list names no plugin")
	}
	offers, err := versionsOffered(body)
	if err != nil {
		return nil, err
	}
	if list, err = settle(list, list.CNIVersion); err != nil {
		return nil, err
	}
	return &network{list: list, path: path, offers: offers}, nil
}

func readConf(path string) ([]byte, error) {
	// Opened without waiting: a FIFO in the directory must not hold the agent.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if i, err := f.Stat(); err != nil || !i.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file (%w)", errors.Join(err, os.ErrInvalid))
	}
	body, err := io.ReadAll(io.LimitReader(f, confLimit+1))
	if err == nil && len(body) > confLimit {
		err = fmt.Errorf("larger than %d bytes", confLimit)
	}
	return body, err
}

// versionsOffered are the entries of cniVersions, if there are any, and
// cniVersion, as far as they are known here; newest first.
func versionsOffered(body []byte) ([]string, error) {
	var c struct {
		One  string   `json:"cniVersion"`
		Many []string `json:"cniVersions"`
	}
	if err := json.Unmarshal(body, &c); err != nil || len(c.Many) == 0 {
		return nil, err
	}
	if c.One != "" {
		c.Many = append(c.Many, c.One)
	}
	known := slices.Clone(version.All.SupportedVersions())
	slices.Reverse(known)
	known = slices.DeleteFunc(known, func(v string) bool { return !slices.Contains(c.Many, v) })
	if len(known) == 0 {
		return nil, fmt.Errorf("none of cniVersions %s is known here: add one of %s", strings.Join(c.Many, ", "), strings.Join(version.All.SupportedVersions(), ", "))
	}
	return known, nil
}

// settle returns list for version v of CNI, with all its plugins in its bytes:
// these are recorded with each attachment, and must mean the same for ever.
func settle(list *libcni.NetworkConfigList, v string) (*libcni.NetworkConfigList, error) {
	raw := map[string]any{}
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	delete(raw, "cniVersions")
	var plugins []json.RawMessage
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	raw["plugins"], raw["loadOnlyInlinedPlugins"] = plugins, true
	if v != "" {
		raw["cniVersion"] = v
	}
	body, err := json.Marshal(raw)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(body)
}

// asList wraps the configuration of a single plugin, which older networks still
// install, into a list of one.
func asList(body []byte) ([]byte, error) {
	var c struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Type       string `json:"type"`
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return nil, err
	}
	if c.Type == "" {
		return nil, fmt.Errorf("no plugin type; a list of plugins belongs into a .conflist file")
	}
	return json.Marshal(map[string]any{"cniVersion": c.CNIVersion, "name": c.Name, "plugins": []json.RawMessage{body}})
}

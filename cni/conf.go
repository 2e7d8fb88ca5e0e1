package cni

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// confLimit bounds a network configuration file.
const confLimit = 1 << 20

// network is a usable configuration and where it came from.
type network struct {
	list  *libcni.NetworkConfigList
	path  string
	owned bool // Berth's own default network
	// plain, of the default network, is the list without portmap, for the many
	// sandboxes without a host port: one program less to run, twice.
	plain *libcni.NetworkConfigList
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
			list, err := parse(path)
			if err != nil {
				problems = append(problems, &Error{InvalidConf, "read configuration", fmt.Errorf("%s: %w", path, err)})
				continue
			}
			return &network{list: list, path: path}, problems
		}
	}
	return nil, problems
}

// parse reads a conflist, or a single configuration as a list of one.
func parse(path string) (*libcni.NetworkConfigList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, confLimit+1))
	if err != nil {
		return nil, err
	}
	if len(body) > confLimit {
		return nil, fmt.Errorf("larger than %d bytes", confLimit)
	}
	if !strings.HasSuffix(path, ".conflist") {
		if body, err = asList(body); err != nil {
			return nil, err
		}
	}
	list, err := libcni.ConfListFromBytes(body)
	if err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("the list names no plugin")
	}
	return list, nil
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

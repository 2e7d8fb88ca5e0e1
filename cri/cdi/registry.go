package cdi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	lib "tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	spec "tags.cncf.io/container-device-interface/specs-go"
)

// ErrInvalid marks a request that names no device; ErrUnknown one that names a
// device, or a specification, that this node cannot give.
var (
	ErrInvalid = errors.New("invalid request for a CDI device")
	ErrUnknown = errors.New("CDI device not available")
)

// maxDevices bounds how many devices one container may ask for.
const maxDevices = 256

// DefaultDirs are where specifications lie unless the configuration says
// otherwise; of two for the same device, the one in the later directory holds.
func DefaultDirs() []string { return slices.Clone(lib.DefaultSpecDirs) }

// Registry reads the specifications anew whenever it is asked. Its methods may be
// called at once. A nil Registry knows no device.
type Registry struct {
	dirs []string
	mu   sync.Mutex
	lib  *lib.Cache
}

// Open returns the registry of dirs, absolute paths that need not exist.
func Open(dirs []string) (*Registry, error) {
	// Not read at once: that many specifications may be none of this runtime's business.
	c, err := lib.NewCache(lib.WithAutoRefresh(false), lib.WithSpecDirs(dirs...))
	if err != nil {
		return nil, fmt.Errorf("opening the CDI specifications in %s: %w", strings.Join(dirs, ", "), err)
	}
	return &Registry{dirs: dirs, lib: c}, nil
}

// Devices lists the qualified names of all devices, sorted, and by file what is
// wrong with specifications that cannot be used.
func (r *Registry) Devices() (names []string, faults map[string]string) {
	if r == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	faults = r.refresh()
	return r.lib.ListDevices(), faults
}

// refresh reads the directories, and says what is wrong in them.
func (r *Registry) refresh() map[string]string {
	if r.lib.Refresh() == nil {
		return nil
	}
	faults := map[string]string{}
	for path, errs := range r.lib.GetErrors() {
		faults[path] = errors.Join(errs...).Error()
	}
	return faults
}

// Requested are the devices that a container asks for: CRI's field first, then the
// annotations cdi.k8s.io/* by their names. Each once. The error is ErrInvalid.
func Requested(c *runtimeapi.ContainerConfig) ([]string, error) {
	var names []string
	add := func(name string) error {
		if !parser.IsQualifiedName(name) {
			return fmt.Errorf("%w: %.200q is not vendor.com/class=name", ErrInvalid, name)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if len(names) > maxDevices {
			return fmt.Errorf("%w: more than %d devices", ErrInvalid, maxDevices)
		}
		return nil
	}
	for _, d := range c.GetCDIDevices() {
		if err := add(d.GetName()); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetAnnotations())) {
		if !strings.HasPrefix(key, lib.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(c.GetAnnotations()[key], ",") {
			if err := add(name); err != nil {
				return nil, fmt.Errorf("annotation %s: %w", key, err)
			}
		}
	}
	return names, nil
}

// Resolve reads what has to be changed for the devices names, which may be none.
// The error is ErrUnknown and names each device that there is none of, or whose
// specification asks for what no runtime in use can do.
func (r *Registry) Resolve(names []string) (*Edits, error) {
	if len(names) == 0 {
		return &Edits{}, nil
	}
	if r == nil {
		return nil, fmt.Errorf("%w: %s: this runtime reads no CDI specifications", ErrUnknown, strings.Join(names, ", "))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	faults := r.refresh()
	all := &lib.ContainerEdits{}
	seen := map[*lib.Spec]bool{}
	var missing []string
	for _, name := range names {
		d := r.lib.GetDevice(name)
		if d == nil {
			missing = append(missing, name)
			continue
		}
		if s := d.GetSpec(); !seen[s] {
			seen[s] = true
			all.Append(&lib.ContainerEdits{ContainerEdits: &s.ContainerEdits})
		}
		all.Append(&lib.ContainerEdits{ContainerEdits: &d.ContainerEdits})
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: no specification in %s has %s%s", ErrUnknown, strings.Join(r.dirs, ", "), strings.Join(missing, ", "), blamed(faults))
	}
	own, err := copyOf(all.ContainerEdits)
	if err != nil {
		return nil, err
	}
	if len(own.NetDevices) > 0 {
		return nil, fmt.Errorf("%w: %s: its specification moves a network interface into the container, which this runtime does not do", ErrUnknown, strings.Join(names, ", "))
	}
	return &Edits{edits: *own}, nil
}

// blamed tells of specifications that cannot be read: the missing device may be in one.
func blamed(faults map[string]string) string {
	if len(faults) == 0 {
		return ""
	}
	first := slices.Sorted(maps.Keys(faults))[0]
	return fmt.Sprintf(" (%d of them cannot be used: %s: %.500s)", len(faults), first, faults[first])
}

// copyOf keeps what is edited further from what was read.
func copyOf(e *spec.ContainerEdits) (*spec.ContainerEdits, error) {
	b, err := json.Marshal(e)
	if err == nil {
		e = &spec.ContainerEdits{}
		err = json.Unmarshal(b, e)
	}
	if err != nil {
		return nil, fmt.Errorf("copying the edits of a CDI specification: %w", err)
	}
	return e, nil
}

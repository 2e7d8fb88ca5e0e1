package container

import (
	"crypto/sha256"
	"encoding/json"
	"sync"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// filters remembers what crun compiled of each seccomp profile: libseccomp takes
// some ten milliseconds for the default one, more than all else in a creation.
type filters struct {
	mu    sync.Mutex
	known map[profileKey][]byte
}

// profileKey names a seccomp section by its content; zero is no section.
type profileKey [sha256.Size]byte

// maxFilters bounds the memory: profiles of a node are few.
const maxFilters = 64

// find names the profile, and returns its filter if it has been compiled.
func (f *filters) find(p *specs.LinuxSeccomp) (profileKey, []byte) {
	if p == nil {
		return profileKey{}, nil
	}
	b, err := json.Marshal(p)
	if err != nil {
		return profileKey{}, nil // the specification will not be encoded either
	}
	key := profileKey(sha256.Sum256(b))
	f.mu.Lock()
	defer f.mu.Unlock()
	return key, f.known[key]
}

// keep takes the filter that the runtime compiled for container id.
func (f *filters) keep(key profileKey, rt *ociruntime.Runtime, id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if key == (profileKey{}) || f.known[key] != nil || len(f.known) >= maxFilters {
		return
	}
	if b := rt.SeccompFilter(id); b != nil {
		if f.known == nil {
			f.known = map[profileKey][]byte{}
		}
		f.known[key] = b
	}
}

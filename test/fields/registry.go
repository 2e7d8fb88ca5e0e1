package fields

import (
	"strings"

	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/registry"
)

// startRegistry starts a registry that serves private:1 to one user.
func (r *running) startRegistry() (string, error) {
	user, password, _ := strings.Cut(r.step.Args, " ")
	reg := registry.Start(r.t)
	spec, err := image.BusyboxSpec()
	if err != nil {
		return "", err
	}
	reg.Push(r.t, "private", "1", spec)
	reg.Private(user, password)
	r.registry = reg.Address
	return "", nil
}

package wire

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/berthd/berth/cri/server"
	"github.com/berthd/berth/cri/snapshot"
)

// rootfs is image.Store as cri/container wants it.
type rootfs struct{ *image.Store }

func (r rootfs) MountRootfs(ctx context.Context, m container.RootfsMount) error {
	o := image.RootfsOptions{Volume: m.Volume, Label: m.Label}
	if u := m.Users; u.NS != "" {
		ns, err := os.Open(u.NS)
		if err != nil {
			return fmt.Errorf("open the pod's user namespace: %w", err)
		}
		defer ns.Close()
		o.Owner = &snapshot.Owner{UserNS: ns, UID: u.UIDs.Host, GID: u.GIDs.Host, Length: min(u.UIDs.Length, u.GIDs.Length)}
	}
	return r.Store.MountRootfs(ctx, m.ID, m.Image, m.Target, o)
}

// findRuntimes finds the OCI runtimes: the default one, and by the name of the
// runtime handler crun and runc as far as they are installed, and those that are
// configured. A configured one that cannot be used is in unusable: it is no
// reason to leave all other pods without an agent.
func findRuntimes(ctx context.Context, o Options) (first ociruntime.Binary, handlers map[string]ociruntime.Binary, unusable map[string]error, err error) {
	if first, err = ociruntime.Find(ctx, o.OCIRuntime); err != nil {
		return first, nil, nil, err
	}
	handlers, unusable = map[string]ociruntime.Binary{}, map[string]error{}
	for _, name := range []string{"crun", "runc"} {
		if name == first.Name {
			handlers[name] = first
		} else if path, err := exec.LookPath(name); err == nil {
			if b, err := ociruntime.Find(ctx, path); err == nil {
				handlers[name] = b
			}
		}
	}
	var mu sync.Mutex
	var asked sync.WaitGroup
	for name, h := range o.Runtimes {
		asked.Go(func() {
			b, err := ociruntime.FindHandler(ctx, name, h.Path)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				delete(handlers, name)
				unusable[name] = err
				o.Log.Error("pods of a runtime handler cannot be run", "handler", name, "err", err)
				return
			}
			handlers[name] = b
		})
	}
	asked.Wait()
	return first, handlers, unusable, nil
}

// named are the OCI runtimes of the handlers with a name.
func (e *embedded) named(o Options, systemd bool) map[string]*ociruntime.Runtime {
	out := map[string]*ociruntime.Runtime{}
	for name, b := range e.binaries {
		out[name] = ociruntime.New(b, filepath.Join(o.StateDir, "oci"), systemd, e.ns)
		if h, configured := o.Runtimes[name]; configured {
			out[name] = out[name].With(h.Handler)
		}
	}
	return out
}

// handlers tells what each runtime handler can do on this host.
func (e *embedded) handlers(o Options) map[string]server.Handler {
	host := passable(o.StateDir)
	if host == nil {
		host = e.userNamespaces(o.RootDir)
	}
	of := func(b ociruntime.Binary) server.Handler {
		h := server.Handler{RecursiveReadOnly: e.host.RecursiveReadOnly && b.RecursiveReadOnly(), NoUserNamespaces: host}
		if err := b.UserNamespaces(); err != nil {
			h.NoUserNamespaces = err
		}
		return h
	}
	out := map[string]server.Handler{"": of(e.binary)}
	for name, b := range e.binaries {
		out[name] = of(b)
	}
	for name, err := range e.unusable {
		out[name] = server.Handler{Unusable: err}
	}
	return out
}

// passable says why the root users of pods with user namespaces could not reach
// their containers' root filesystems, as OCI runtimes make them.
func passable(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if st.Mode()&0o001 == 0 {
			return fmt.Errorf("the state directory must let others pass through: chmod o+x %s", dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// userNamespaces says why no pod can have a user namespace on this host, whatever
// the runtime: the kernel, or the file system of images or of volumes.
func (e *embedded) userNamespaces(rootDir string) error {
	return sandbox.ProbeUserNamespace(func(userns *os.File) error {
		if err := e.images.ProbeIDMap(userns); err != nil {
			return err
		}
		tree, err := mountns.CloneTree(rootDir, false)
		if err != nil {
			return err
		}
		defer tree.Close()
		if err := tree.MapIDs(userns); err != nil {
			return fmt.Errorf("volumes in %s: %w", rootDir, err)
		}
		return nil
	})
}

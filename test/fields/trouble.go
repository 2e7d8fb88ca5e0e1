package fields

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/image"
)

// tmpfs mounts a file system of a size at a path until the test is over.
func (r *running) tmpfs() (string, error) {
	path, size, _ := strings.Cut(r.step.Args, " ")
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount("small", path, "tmpfs", 0, "mode=755,size="+size); err != nil {
		return "", fmt.Errorf("mount a tmpfs at %s: %w", path, err)
	}
	r.home.Cleanup(func() { r.unmount(path) })
	return "", nil
}

// readonly makes a directory read-only until the test is over.
func (r *running) readonly() (string, error) {
	path := r.step.Args
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("mount %s on itself: %w", path, err)
	}
	r.home.Cleanup(func() { r.unmount(path) })
	return "", unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

// hang mounts a file system at a path that answers nothing, as one of a dead
// network server does, until the test is over.
func (r *running) hang() (string, error) {
	path := r.step.Args
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open /dev/fuse: %w", err)
	}
	if err := unix.Mount("dead", path, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		return "", errors.Join(fmt.Errorf("mount a file system of ours: %w", err), unix.Close(fd))
	}
	r.home.Cleanup(func() {
		_ = unix.Close(fd) // whoever waits for an answer gets an error now
		r.unmount(path)
	})
	return "", nil
}

func (r *running) unmount(path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		r.home.Errorf("unmount %s: %v", path, err)
	}
}

// push pushes busybox with another configuration, and a layer of its own, to the case's registry.
func (r *running) push() (string, error) {
	ref, config, _ := strings.Cut(r.step.Args, " ")
	config, arch, _ := strings.Cut(config, " arch=")
	name, tag, _ := strings.Cut(ref, ":")
	spec, err := image.BusyboxSpec()
	if err != nil {
		return "", err
	}
	spec.Architecture = arch
	if config != "" {
		if err := json.Unmarshal([]byte(config), &spec.Config); err != nil {
			return "", err
		}
	}
	spec.Layers = append(spec.Layers, image.Layer{"/case": {Body: []byte(r.pod), Mode: 0o644}})
	_, err = image.Push(r.registry.Direct, name, tag, spec)
	return "", err
}

// tls puts a server in the registry's place whose certificate nobody knows.
func (r *running) tls() (string, error) {
	// Of a local address a certificate would be taken on trust.
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(addresses, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.To4() != nil && !n.IP.IsLoopback()
	})
	if i < 0 {
		r.t.Skip("this machine has no address but local ones")
	}
	l, err := net.Listen("tcp", net.JoinHostPort(addresses[i].(*net.IPNet).IP.String(), "0"))
	if err != nil {
		return "", err
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.NotFoundHandler()}}
	s.StartTLS()
	r.home.Cleanup(s.Close)
	r.registry.Address = s.Listener.Addr().String()
	return "", nil
}

// killmonitor kills the monitor of a container.
func (r *running) killmonitor() (string, error) {
	id, err := r.container(r.step.Args)
	if err != nil {
		return "", err
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return "", err
	}
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), "conmon\x00") || !strings.Contains(string(line), "\x00"+id+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			return "", err
		}
		return "", unix.Kill(pid, unix.SIGKILL)
	}
	return "", fmt.Errorf("container %s has no monitor", id)
}

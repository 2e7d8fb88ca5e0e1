package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/test/image"
)

// registries are those that critest's images are named after; each of them is
// mirrored by the one registry on loopback.
var registries = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws"}

// digestImage is named by critest by the digest of the image that its makers
// published; ours cannot have it (see ownDigest).
const digestImage = "k8s-staging-cri-tools/test-image-digest"

// picture is one image as the registry has it.
type picture struct {
	name, tag string
	spec      image.Spec
}

// pictures are all images that critest 1.36.0 names, its benchmarks included.
// program is the path of the built ./program.
func pictures(program string) ([]picture, error) {
	box, err := busybox()
	if err != nil {
		return nil, err
	}
	body, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("read the program of the images: %w", err)
	}
	const e2e, staging, library = "e2e-test-images/", "k8s-staging-cri-tools/", "docker/library/"
	all := []picture{
		{"pause", "3.9", pauseSpec(body)},
		{"pause", "3.10.2", pauseSpec(body)},
		{e2e + "busybox", "1.29-2", marked(box, "busybox-1.29-2")},
		{e2e + "nginx", "1.14-2", server(box, body, "/usr/sbin/nginx", "master process", "80")},
		{e2e + "httpd", "2.4.39-4", server(box, body, "/usr/local/bin/httpd", "80")},
		{e2e + "nonewprivs", "1.3", setuid(box, body)},
		{staging + "hostnet-nginx-" + runtime.GOARCH, "latest", server(box, body, "/usr/sbin/nginx", "master process", "12003")},
		{staging + "test-image-predefined-group", "latest", predefinedGroup(box)},
		{digestImage, "latest", marked(box, "test-image-digest")},
		{staging + "test-image-latest", "latest", marked(box, "test-image-latest")},
		{staging + "test-image-tag", "test", marked(box, "test-image-tag")},
		{staging + "test-image-tag", "all", marked(box, "test-image-tag-all")},
	}
	for _, n := range []string{"1", "2", "3"} {
		all = append(all, picture{staging + "test-image-" + n, "latest", marked(box, "test-image-"+n)},
			picture{staging + "test-image-tags", n, marked(box, "test-image-tags")})
	}
	for name, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"} {
		s := marked(box, "test-image-user-"+name)
		s.Config.User = user
		all = append(all, picture{staging + "test-image-user-" + name, "latest", s})
	}
	for _, tag := range []string{"1", "1-glibc", "1-musl", "1-uclibc", "1.35.0-glibc"} {
		all = append(all, picture{library + "busybox", tag, marked(box, "busybox-"+tag)})
	}
	return all, nil
}

// pgrep and ipcs are what critest runs of two applets that Debian's busybox lacks.
const (
	pgrep = `#!/bin/sh
# pgrep NAME: the processes of that name
found=1
for p in /proc/[0-9]*; do
	[ "$(cat $p/comm 2>/dev/null)" != "$1" ] || { echo ${p#/proc/}; found=0; }
done
exit $found
`
	ipcs = `#!/bin/sh
# ipcs -m: the shared memory segments of this IPC namespace
exec cat /proc/sysvipc/shm
`
)

// busybox is what critest's images are built on. A spec masks /bin/ls and wants
// the shell to fail at it. Debian's shell does not look for ls: it runs the
// applet in itself. So ls is a file of its own, and the shell's busybox is one
// whose applet has another name (which keeps the applets in their order).
func busybox() (image.Spec, error) {
	s, err := image.BusyboxSpec()
	if err != nil {
		return s, err
	}
	l := maps.Clone(s.Layers[0])
	shell := l["/bin/busybox"]
	l["/bin/ls"] = shell
	have, want := []byte("\x00losetup\x00ls\x00lsmod\x00"), []byte("\x00losetup\x00lr\x00lsmod\x00")
	if bytes.Count(shell.Body, have) != 1 {
		return s, errors.New("this busybox's list of applets is not the one of Debian's busybox-static: its shell cannot be kept from running ls by itself")
	}
	shell.Body = bytes.Replace(shell.Body, have, want, 1)
	l["/bin/busybox"] = shell
	l["/usr/bin/pgrep"] = image.File{Body: []byte(pgrep), Mode: 0o755}
	l["/usr/bin/ipcs"] = image.File{Body: []byte(ipcs), Mode: 0o755}
	s.Layers = []image.Layer{l}
	return s, nil
}

// with is s with one layer more.
func with(s image.Spec, l image.Layer) image.Spec {
	s.Layers = append(append([]image.Layer(nil), s.Layers...), l)
	return s
}

// marked is s with a file of its own, so that no other image is identical.
func marked(s image.Spec, name string) image.Spec {
	return with(s, image.Layer{"/" + name: {Body: []byte(name + "\n"), Mode: 0o644}})
}

func pauseSpec(program []byte) image.Spec {
	return image.Spec{Layers: []image.Layer{{"/pause": {Body: program, Mode: 0o755}}}, Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}}}
}

func server(s image.Spec, program []byte, path string, args ...string) image.Spec {
	s = with(s, image.Layer{path: {Body: program, Mode: 0o755}, "/var/run": {Mode: os.ModeDir | 0o755}})
	s.Config.Cmd = append([]string{path}, args...)
	return s
}

func setuid(s image.Spec, program []byte) image.Spec {
	s = with(s, image.Layer{"/usr/local/bin/nnp": {Body: program, Mode: os.ModeSetuid | 0o755}})
	s.Config.Cmd = []string{"nnp"}
	return s
}

// predefinedGroup has a user of 1000, who is in the group 50000 by the image's
// own files.
func predefinedGroup(s image.Spec) image.Spec {
	l := image.Layer{}
	for path, line := range map[string]string{
		"/etc/passwd": "default-user:x:1000:1000::/home/default-user:/bin/sh\n",
		"/etc/group":  "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
	} {
		f := s.Layers[0][path]
		f.Body = append(append([]byte(nil), f.Body...), line...)
		l[path] = f
	}
	s = with(s, maps.Clone(l))
	s.Config.User = "1000"
	return s
}

// Package image builds OCI image archives from local parts, for examples and
// tests on machines that reach no registry. Archives are reproducible: the same
// parts give the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of a layer. A Link makes it a symbolic link, a Mode with
// os.ModeDir a directory, with os.ModeNamedPipe a FIFO, with os.ModeCharDevice a
// device.
type File struct {
	Body         []byte
	Mode         os.FileMode
	Link         string
	UID          int
	GID          int
	Major, Minor int64
}

// Layer maps absolute paths to files.
type Layer map[string]File

// Spec is an image to be built.
type Spec struct {
	Names  []string // full references: docker.io/library/busybox:latest
	Layers []Layer
	Config ocispec.ImageConfig
	// Architecture is this machine's if empty.
	Architecture string
}

// Busybox returns the layer of a small Unix: the statically linked busybox of
// this machine with a link for each of its applets, and the users root,
// daemon and nobody. It fails when busybox-static is not installed.
func Busybox() (Layer, error) {
	const path = "/bin/busybox"
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; install the package busybox-static", path, err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", path, err)
	}
	l := Layer{
		"/bin/busybox":         {Body: body, Mode: 0o755},
		"/tmp":                 {Mode: os.ModeDir | os.ModeSticky | 0o777},
		"/root":                {Mode: os.ModeDir | 0o700},
		"/etc/passwd":          {Body: []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"), Mode: 0o644},
		"/etc/group":           {Body: []byte("root:x:0:\ndaemon:x:1:\nnobody:x:65534:\n"), Mode: 0o644},
		"/usr/bin/env":         {Link: "/bin/busybox"},
		"/var/www/placeholder": {Body: []byte("berth\n"), Mode: 0o644},
	}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			l["/bin/"+a] = File{Link: "/bin/busybox"}
		}
	}
	return l, nil
}

// BusyboxSpec is the image that examples and tests use under names.
func BusyboxSpec(names ...string) (Spec, error) {
	l, err := Busybox()
	if err != nil {
		return Spec{}, err
	}
	return Spec{Names: names, Layers: []Layer{l}, Config: ocispec.ImageConfig{
		Cmd: []string{"sh"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}}, nil
}

// WriteOCI writes s to w as a tar of an OCI image layout.
func WriteOCI(w io.Writer, s Spec) error {
	tw := tar.NewWriter(w)
	blob := func(mediaType string, body []byte) (ocispec.Descriptor, error) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
		return d, writeFile(tw, "blobs/sha256/"+d.Digest.Encoded(), body)
	}
	if err := writeFile(tw, ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	epoch := time.Unix(0, 0).UTC()
	config := ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{Architecture: cmp.Or(s.Architecture, runtime.GOARCH), OS: "linux"},
		Config:   s.Config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	written := map[digest.Digest]bool{}
	for _, l := range s.Layers {
		body, err := tarLayer(l)
		if err != nil {
			return err
		}
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(body), Size: int64(len(body))}
		if !written[d.Digest] {
			written[d.Digest] = true
			if d, err = blob(ocispec.MediaTypeImageLayer, body); err != nil {
				return err
			}
		}
		manifest.Layers = append(manifest.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(body))))
		config.History = append(config.History, ocispec.History{Created: &epoch})
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var err error
	if manifest.Config, err = blobJSON(blob, ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	d, err := blobJSON(blob, ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	for _, name := range s.Names {
		n := d
		n.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: name[strings.LastIndex(name, ":")+1:]}
		index.Manifests = append(index.Manifests, n)
	}
	body, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := writeFile(tw, ocispec.ImageIndexFile, body); err != nil {
		return err
	}
	return tw.Close()
}

func blobJSON(blob func(string, []byte) (ocispec.Descriptor, error), mediaType string, v any) (ocispec.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return blob(mediaType, body)
}

func writeFile(tw *tar.Writer, name string, body []byte) error {
	h := &tar.Header{Name: name, Size: int64(len(body)), Mode: 0o644, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(body)
	return err
}

// tarLayer writes l as a layer, parents before children, in a fixed order.
func tarLayer(l Layer) ([]byte, error) {
	all := Layer{}
	for p, f := range l {
		all[strings.TrimPrefix(p, "/")] = f
		for d := parent(p); d != "" && d != "/"; d = parent(d) {
			if _, ok := l[d]; !ok {
				all[strings.TrimPrefix(d, "/")] = File{Mode: os.ModeDir | 0o755}
			}
		}
	}
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	sort.Strings(names)
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, n := range names {
		f := all[n]
		h := &tar.Header{Name: n, Mode: int64(f.Mode.Perm()), Uid: f.UID, Gid: f.GID, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Size: int64(len(f.Body))}
		if f.Mode&os.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if f.Mode&os.ModeSetuid != 0 {
			h.Mode |= 0o4000
		}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
		case f.Mode.IsDir():
			h.Typeflag, h.Size, h.Name = tar.TypeDir, 0, n+"/"
		case f.Mode&os.ModeNamedPipe != 0:
			h.Typeflag, h.Size = tar.TypeFifo, 0
		case f.Mode&os.ModeCharDevice != 0:
			h.Typeflag, h.Size, h.Devmajor, h.Devminor = tar.TypeChar, 0, f.Major, f.Minor
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(f.Body); err != nil {
				return nil, err
			}
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func parent(p string) string {
	i := strings.LastIndex(p, "/")
	if i <= 0 {
		return ""
	}
	return p[:i]
}

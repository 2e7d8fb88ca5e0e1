package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/snapshot"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == snapshot.UnpackArg {
		snapshot.UnpackMain()
	}
	if root, archive, ok := strings.Cut(os.Getenv(importEnv), ":"); ok {
		os.Exit(importToBeKilled(root, archive))
	}
	flag.Parse()
	sideBySide(8)
	os.Exit(m.Run())
}

// sideBySide has n tests run at once, unless -parallel says otherwise: most wait
// for the disk, whose writes are synced, and not for a processor.
func sideBySide(n int) {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(n)) // the flag of every test binary
	}
}

// file is one entry of a layer.
type file struct {
	name, body, link string
	kind             byte
	mode             int64
}

func layerTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Linkname: f.link, Typeflag: f.kind, Mode: f.mode, Size: int64(len(f.body)), ModTime: time.Unix(1, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// built is an image in memory: blobs by digest, and what leads to them.
type built struct {
	t        testing.TB
	blobs    map[digest.Digest][]byte
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	layers   []ocispec.Descriptor
	diffs    [][]byte
}

func (b *built) put(mediaType string, body []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	b.blobs[d.Digest] = body
	return d
}

func (b *built) json(mediaType string, v any) ocispec.Descriptor {
	body, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.put(mediaType, body)
}

// build makes an image of uncompressed layers, which are stored as gzip.
func build(t testing.TB, conf ocispec.ImageConfig, layers ...[]byte) *built {
	t.Helper()
	return buildFor(t, runtime.GOARCH, conf, layers...)
}

func buildFor(t testing.TB, arch string, conf ocispec.ImageConfig, layers ...[]byte) *built {
	t.Helper()
	b := &built{t: t, blobs: map[digest.Digest][]byte{}, diffs: layers}
	c := ocispec.Image{Config: conf, Platform: ocispec.Platform{OS: "linux", Architecture: arch}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
		b.layers = append(b.layers, b.put(ocispec.MediaTypeImageLayerGzip, gz(t, l)))
	}
	b.config = b.json(ocispec.MediaTypeImageConfig, c)
	b.remanifest()
	return b
}

func (b *built) remanifest() {
	b.manifest = b.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: b.config, Layers: b.layers})
}

func (b *built) id() ID { return ID(b.config.Digest) }

// layout writes an OCI layout archive whose index names the image.
func (b *built) layout(names ...string) []byte {
	b.t.Helper()
	ix := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for _, n := range names {
		m := b.manifest
		m.Annotations = map[string]string{"io.containerd.image.name": n}
		ix.Manifests = append(ix.Manifests, m)
	}
	if len(names) == 0 {
		ix.Manifests = append(ix.Manifests, b.manifest)
	}
	return layoutTar(b.t, ix, b.blobs)
}

func layoutTar(t testing.TB, ix ocispec.Index, blobs map[digest.Digest][]byte) []byte {
	t.Helper()
	body, err := json.Marshal(ix)
	if err != nil {
		t.Fatal(err)
	}
	files := []file{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", body: string(body)}}
	for d, blob := range blobs {
		files = append(files, file{name: path.Join("blobs/sha256", d.Encoded()), body: string(blob)})
	}
	return layerTar(t, files...)
}

// dockerArchive writes what docker save does.
func (b *built) dockerArchive(tags ...string) []byte {
	b.t.Helper()
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: b.config.Digest.Encoded() + ".json", RepoTags: tags}
	files := []file{{name: e.Config, body: string(b.blobs[b.config.Digest])}}
	for _, d := range b.diffs {
		name := digest.FromBytes(d).Encoded() + "/layer.tar"
		e.Layers = append(e.Layers, name)
		files = append(files, file{name: name, body: string(d)})
	}
	m, err := json.Marshal([]entry{e})
	if err != nil {
		b.t.Fatal(err)
	}
	return layerTar(b.t, append(files, file{name: "manifest.json", body: string(m)})...)
}

// busybox is an image with the machine's static busybox.
func busybox(t testing.TB, extra ...[]byte) *built {
	t.Helper()
	body, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		if body, err = os.ReadFile("/bin/busybox"); err != nil {
			t.Skip("busybox-static is not installed: ", err)
		}
	}
	layers := append([][]byte{layerTar(t,
		file{name: "bin/", kind: tar.TypeDir}, file{name: "bin/busybox", body: string(body)},
		file{name: "bin/sh", kind: tar.TypeSymlink, link: "busybox"}, file{name: "etc/", kind: tar.TypeDir},
		file{name: "etc/passwd", body: "root:x:0:0::/:/bin/sh\n", mode: 0o644})}, extra...)
	return build(t, ocispec.ImageConfig{Cmd: []string{"sh"}, User: "1000:1000", Env: []string{"A=b"}}, layers...)
}

func goarch() string { return runtime.GOARCH }

// median is the middle one of ds, in microseconds.
func median(ds []time.Duration) float64 {
	slices.Sort(ds)
	return float64(ds[len(ds)/2].Microseconds())
}

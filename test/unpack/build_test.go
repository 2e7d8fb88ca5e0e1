package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entry is one entry of a layer. Zero times are the second of day one.
type entry struct {
	tar.Header
	body string
	raw  []byte // instead of header and body: bytes of the stream
}

// layer is the entries of one layer and how they are packed.
type layer struct {
	entries []entry
	media   string // gzip's if empty
}

// img is one image: what Berth gets, and, where umoci takes something in another
// form only, what umoci gets for it.
type img struct {
	name    string
	layers  []layer
	umoci   []layer
	refused bool // both are to refuse it
}

const (
	plain = ocispec.MediaTypeImageLayer
	gzipd = ocispec.MediaTypeImageLayerGzip
	zstdd = ocispec.MediaTypeImageLayerZstd
)

var noon = time.Unix(1_600_000_000, 0)

func at(e entry) entry {
	if e.ModTime.IsZero() {
		e.ModTime = noon
	}
	return e
}

func file(name, body string, change ...func(*tar.Header)) entry {
	return made(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}, body, change)
}

func dir(name string, mode int64, change ...func(*tar.Header)) entry {
	return made(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode}, "", change)
}

func link(name, to string) entry {
	return made(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, "", nil)
}

func hard(name, to string) entry {
	return made(tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}, "", nil)
}

func node(name string, kind byte, major, minor int64) entry {
	return made(tar.Header{Name: name, Typeflag: kind, Mode: 0o640, Devmajor: major, Devminor: minor}, "", nil)
}

func gone(name string) entry {
	d, b := filepath.Split(name)
	return file(d+".wh."+b, "")
}

func opaque(dir string) entry { return file(dir+"/.wh..wh..opq", "") }

func made(h tar.Header, body string, change []func(*tar.Header)) entry {
	for _, c := range change {
		c(&h)
	}
	return at(entry{Header: h, body: body})
}

func owner(uid, gid int) func(*tar.Header) { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }
func mode(m int64) func(*tar.Header)       { return func(h *tar.Header) { h.Mode = m } }
func when(t time.Time) func(*tar.Header) {
	return func(h *tar.Header) { h.ModTime, h.Format = t, tar.FormatPAX }
}

func attr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

func of(entries ...entry) layer { return layer{entries: entries} }

func (l layer) tar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range l.entries {
		if e.raw != nil {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			b.Write(e.raw)
			continue
		}
		h := e.Header
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (l layer) packed(t testing.TB, stream []byte) []byte {
	t.Helper()
	switch l.media {
	case plain:
		return stream
	case zstdd:
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(stream, nil)
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(stream); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layout writes an image as OCI layout, under the tag "it".
func layout(t testing.TB, layers []layer) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, body []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(media string, body []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(body), Size: int64(len(body))}
		write("blobs/sha256/"+d.Digest.Encoded(), body)
		return d
	}
	object := func(media string, v any) ocispec.Descriptor {
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return blob(media, body)
	}
	conf := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	man := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		stream := l.tar(t)
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, digest.FromBytes(stream))
		media := l.media
		if media == "" {
			media = gzipd
		}
		man.Layers = append(man.Layers, blob(media, l.packed(t, stream)))
		conf.History = append(conf.History, ocispec.History{CreatedBy: "test"})
	}
	man.Config = object(ocispec.MediaTypeImageConfig, conf)
	m := object(ocispec.MediaTypeImageManifest, man)
	m.Annotations = map[string]string{ocispec.AnnotationRefName: "it"}
	ix, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{m}})
	if err != nil {
		t.Fatal(err)
	}
	write("index.json", ix)
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}

func numbered(n int, f func(int) entry) []entry {
	out := make([]entry, 0, n)
	for i := range n {
		out = append(out, f(i))
	}
	return out
}

func many(n int, f func(int) layer) []layer {
	out := make([]layer, 0, n)
	for i := range n {
		out = append(out, f(i))
	}
	return out
}

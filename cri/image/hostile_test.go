package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// peakRSS is the most memory this process has had since clearPeak, in bytes.
func peakRSS(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

func clearPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skip("the kernel does not forget the peak of memory: ", err)
	}
}

// TestHostileImagesCostLittle imports images that are made to exhaust something.
// The error says which limit it was, and the process that unpacks nothing itself
// stays small. Parallel where it does not measure its own memory.
func TestHostileImagesCostLittle(t *testing.T) {
	if raceEnabled {
		t.Parallel()
	}
	unit := 2 << 20 // of which a bomb has eight, twice what is taken
	if !raceEnabled {
		unit *= 8
	}
	zeros := layerTar(t, file{name: "zeros", body: strings.Repeat("\x00", unit)})
	bomb := bytes.Repeat(zeros[:len(zeros)-1024], 8)
	// A frame that wants a window of two gigabytes.
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00}
	packed := func(media string, layer, blob []byte) *built {
		b := build(t, ocispec.ImageConfig{}, layer)
		b.layers[0] = b.put(media, blob)
		b.remanifest()
		return b
	}
	var names, deep []file
	for i := range 6_000 {
		names = append(names, file{name: fmt.Sprintf("%s%d", strings.Repeat("n", 200), i)})
	}
	deep = append(deep, file{name: "l", kind: tar.TypeSymlink, link: strings.Repeat("d/", 1000)}, file{name: "l/m", kind: tar.TypeSymlink, link: strings.Repeat("e/", 1500)}, file{name: "l/m/n", body: "n"})
	attrs := map[string]string{}
	for i := range 200 {
		attrs[fmt.Sprintf("SCHILY.xattr.user.a%d", i)] = strings.Repeat("v", 1000)
	}
	var pax bytes.Buffer
	w := tar.NewWriter(&pax)
	if err := w.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o600, PAXRecords: attrs}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	many := build(t, ocispec.ImageConfig{}, zeros[:0])
	for range maxLayers + 1 {
		many.layers = append(many.layers, many.layers[0])
	}
	many.remanifest()
	label := build(t, ocispec.ImageConfig{Labels: map[string]string{"l": strings.Repeat("x", maxConfig)}}, zeros[:0])
	nested := build(t, ocispec.ImageConfig{}, zeros[:0])
	nested.config = nested.put(ocispec.MediaTypeImageConfig, []byte(`{"rootfs":{"diff_ids":[]},"config":{"Labels":`+strings.Repeat(`{"a":`, 500_000)))
	nested.remanifest()
	for _, c := range []struct {
		name string
		b    *built
		code Code
		says string
	}{
		{"gzip bomb", build(t, ocispec.ImageConfig{}, bomb), CodeLimit, "unpacks to more than"},
		{"zstd bomb", packed(ocispec.MediaTypeImageLayerZstd, bomb, zst(t, bomb)), CodeLimit, "unpacks to more than"},
		{"zstd window", packed(ocispec.MediaTypeImageLayerZstd, bomb, window), CodeBadImage, "window"},
		{"entries", build(t, ocispec.ImageConfig{}, layerTar(t, names...)), CodeLimit, "more than 5000 entries"},
		{"deep", build(t, ocispec.ImageConfig{}, layerTar(t, deep...)), CodeLimit, "longer than"},
		{"attributes", build(t, ocispec.ImageConfig{}, pax.Bytes()), CodeLimit, "does not fit"},
		{"layers", many, CodeBadImage, "at most 500 are taken"},
		{"configuration", label, CodeLimit, "bytes"},
		{"nesting", nested, CodeBadImage, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if raceEnabled {
				t.Parallel()
			}
			archive := c.b.layout("app:1")
			s := newStore(t, func(c *Config) {
				c.MaxLayerBytes, c.MaxLayerEntries = int64(4*unit), 5_000
				if !raceEnabled { // which itself takes more
					c.UnpackMemory = 256 << 20
				}
			})
			clearPeak(t)
			before := peakRSS(t)
			_, err := s.Import(t.Context(), bytes.NewReader(archive), nil)
			if CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("want %s, %q: %v", c.code, c.says, err)
			}
			if grown := peakRSS(t) - before; grown > 64<<20 && !raceEnabled {
				t.Errorf("this process grew by %d MiB", grown>>20)
			}
			importOne(t, s, small(t), "sound:1")
		})
	}
}

// TestCollectionBesidePulls removes images, which collects, while others are
// imported that share layers with them, and containers are made from these.
func TestCollectionBesidePulls(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	shared := layerTar(t, file{name: "shared", body: noise(100_000)})
	rounds := 5
	if raceEnabled {
		rounds = 2 // which is slow, and sees in two what it would see in five
	}
	var wg sync.WaitGroup
	over := make(chan struct{})
	for n := range 4 {
		own := build(t, ocispec.ImageConfig{Cmd: []string{fmt.Sprint(n)}}, shared, layerTar(t, file{name: "own", body: fmt.Sprint(n)}))
		archive, name := own.layout(fmt.Sprintf("app%d:1", n)), fmt.Sprintf("app%d:1", n)
		wg.Go(func() {
			for i := range rounds {
				list, err := s.Import(t.Context(), bytes.NewReader(archive), nil)
				if err != nil {
					t.Errorf("import %s: %v", name, err)
					return
				}
				container := fmt.Sprintf("c%d-%d", n, i)
				target := mountOne(t, s, container, list[0])
				if err := s.Remove(t.Context(), name); err != nil {
					t.Errorf("remove %s: %v", name, err)
				}
				assertFile(t, target+"/own", fmt.Sprint(n))
				if err := s.UnmountRootfs(t.Context(), container, target); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var collectors sync.WaitGroup
	for range 2 {
		collectors.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if err := s.collect(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(over)
	collectors.Wait()
	if err := s.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
	if n := layerCount(t, s); n != 0 {
		t.Errorf("%d layers are left", n)
	}
}

package image

import (
	"context"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tracker collects what is known of one pull or import.
type tracker struct {
	mu     sync.Mutex
	ref    string
	phase  Phase
	order  []string
	layers map[string]*LayerProgress
	extra  int64 // bytes that belong to no layer
	total  int64 // without layers
}

func newTracker(ref string) *tracker {
	return &tracker{ref: ref, phase: PhaseResolving, layers: map[string]*LayerProgress{}}
}

func (t *tracker) set(phase Phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase = phase
}

// expect announces the layers; a layer that occurs twice counts once.
func (t *tracker) expect(layers []ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase = PhaseDownloading
	for _, l := range layers {
		d := l.Digest.String()
		if t.layers[d] == nil {
			t.layers[d] = &LayerProgress{Digest: d, Phase: PhaseWaiting, Total: l.Size}
			t.order = append(t.order, d)
		}
	}
}

func (t *tracker) layer(digest string, fn func(*LayerProgress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.layers[digest]; l != nil {
		fn(l)
	}
}

// unpacking records that a layer is being unpacked. What is done counts bytes of
// the download.
func (t *tracker) unpacking(digest interface{ String() string }, _ int64) {
	t.layer(digest.String(), func(l *LayerProgress) {
		l.Phase, l.Done = PhaseUnpacking, l.Total
	})
}

func (t *tracker) layerDone(digest interface{ String() string }) {
	t.layer(digest.String(), func(l *LayerProgress) { l.Phase, l.Done = PhaseDone, l.Total })
}

// read counts bytes that came for digest; done is the position in it.
func (t *tracker) read(digest string, n int, done int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.layers[digest]; l != nil {
		l.Phase, l.Done = PhaseDownloading, min(done, l.Total)
		return
	}
	t.extra += int64(n)
}

func (t *tracker) snapshot() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := Progress{Ref: t.ref, Phase: t.phase, Done: t.extra, Total: t.total}
	unpacking := len(t.order) > 0
	for _, d := range t.order {
		l := *t.layers[d]
		p.Layers = append(p.Layers, l)
		p.Done += l.Done
		p.Total += l.Total
		unpacking = unpacking && (l.Phase == PhaseUnpacking || l.Phase == PhaseDone)
	}
	if unpacking && p.Phase == PhaseDownloading {
		p.Phase = PhaseUnpacking
	}
	if p.Total > 0 {
		p.Total = max(p.Total, p.Done)
	}
	return p
}

// report calls progress with the newest snapshot four times a second until
// done closes, and once more then.
func report(done <-chan struct{}, ctx context.Context, t *tracker, progress func(Progress)) {
	if progress == nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
		return
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		progress(t.snapshot())
		select {
		case <-done:
			progress(t.snapshot())
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tracker collects what is known of one pull or import, and notices when
// nothing moves.
type tracker struct {
	mu     sync.Mutex
	ref    string
	phase  Phase
	order  []string
	layers map[string]*LayerProgress
	extra  int64 // bytes that belong to no layer
	total  int64 // without layers

	stall   time.Duration
	network int       // transfers under way
	moved   time.Time // last byte or change
}

func newTracker(ref string, stall time.Duration) *tracker {
	return &tracker{ref: ref, phase: PhaseResolving, layers: map[string]*LayerProgress{}, stall: stall, moved: time.Now()}
}

func (t *tracker) set(phase Phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase, t.moved = phase, time.Now()
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
	t.moved = time.Now()
	if l := t.layers[digest]; l != nil {
		fn(l)
	}
}

// unpacking records how much of a layer was unpacked. It counts as movement,
// but not as done bytes: those are of the download.
func (t *tracker) unpacking(digest interface{ String() string }, _ int64) {
	t.layer(digest.String(), func(l *LayerProgress) {
		l.Phase, l.Done = PhaseUnpacking, l.Total
	})
}

func (t *tracker) layerDone(digest interface{ String() string }) {
	t.layer(digest.String(), func(l *LayerProgress) { l.Phase, l.Done = PhaseDone, l.Total })
}

// transfer counts a transfer that begins (1) or ends (-1).
func (t *tracker) transfer(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.network += n
	t.moved = time.Now()
}

// read counts bytes that came for digest; done is the position in it.
func (t *tracker) read(digest string, n int, done int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.moved = time.Now()
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

// watch ends the work through cancel when a transfer is under way and nothing
// has moved for the stall time. It returns when ctx ends.
func (t *tracker) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(max(t.stall/10, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.mu.Lock()
		stuck := t.network > 0 && time.Since(t.moved) > t.stall
		t.mu.Unlock()
		if stuck {
			cancel(codef(CodeStalled, "no byte came for %v: %w", t.stall, errStalled))
			return
		}
	}
}

// errStalled is the cause of a pull's end when nothing moved.
var errStalled = fmt.Errorf("registry stalled")

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

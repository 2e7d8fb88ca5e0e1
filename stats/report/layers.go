package report

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/berthd/berth/stats/disk"
)

const (
	// A measure is told for layerFresh, or longer if it took long: measuring takes
	// at most a fiftieth of one CPU.
	layerFresh = 10 * time.Second
	layerStale = 5 * time.Minute
	layerShare = 50
	// A layer is measured at once if that takes no longer than atOnce, and all of
	// them together no more than budget of each second.
	atOnce = 20 * time.Millisecond
	budget = 100 * time.Millisecond
	// maxQueue bounds the layers that wait to be measured: who finds no place asks again.
	maxQueue = 1024
	// longest bounds one measure in the background.
	longest = 10 * time.Minute
)

// layers measures what containers wrote.
type layers struct {
	queue chan job

	mu     sync.Mutex
	known  map[string]*layer
	swept  time.Time
	second time.Time // when the current second of the budget began
	spent  time.Duration

	inline  sync.Mutex // holds scanner
	scanner disk.Scanner
}

type layer struct {
	disk.Usage
	at, used time.Time
	took     time.Duration
	queued   bool
}

type job struct{ id, dir string }

func newLayers() layers {
	return layers{queue: make(chan job, maxQueue), known: map[string]*layer{}, scanner: disk.Scanner{Rate: math.MaxInt32}}
}

// usage returns the last measure of a container's layer, a new one if it is due;
// ok is false if there has been none.
func (l *layers) usage(ctx context.Context, id, dir string) (_ layer, ok bool) {
	now := time.Now()
	l.mu.Lock()
	l.sweep(now)
	have := l.known[id]
	if have == nil {
		have = &layer{}
		l.known[id] = have
	}
	have.used = now
	due := now.Sub(have.at) > min(max(layerFresh, have.took*layerShare), layerStale)
	if !due || have.queued {
		defer l.mu.Unlock()
		return *have, !have.at.IsZero()
	}
	if now.Sub(l.second) > time.Second {
		l.second, l.spent = now, 0
	}
	at := have.took <= atOnce && l.spent < budget
	l.mu.Unlock()
	if at {
		ctx, cancel := context.WithTimeout(ctx, atOnce)
		defer cancel()
		l.inline.Lock()
		err := l.measure(ctx, &l.scanner, job{id, dir})
		l.inline.Unlock()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return layer{}, false
		}
		at = err == nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spent += time.Since(now)
	if !at && !have.queued {
		select {
		case l.queue <- job{id, dir}:
			have.queued = true
		default:
		}
	}
	return *have, !have.at.IsZero()
}

// measure keeps what scanner finds.
func (l *layers) measure(ctx context.Context, scanner *disk.Scanner, j job) error {
	begun := time.Now()
	u, err := scanner.Usage(ctx, j.dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	have := l.known[j.id]
	if have == nil {
		return err
	}
	have.queued = false
	if have.took = time.Since(begun); err == nil {
		have.Usage, have.at = u, time.Now()
	}
	return err
}

func (l *layers) sweep(now time.Time) {
	if now.Sub(l.swept) < forget {
		return
	}
	l.swept = now
	for id, have := range l.known {
		if now.Sub(have.used) > 2*forget && !have.queued {
			delete(l.known, id)
		}
	}
}

func (l *layers) run(ctx context.Context, log *slog.Logger) error {
	var scanner disk.Scanner // at its own gentle pace
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case j := <-l.queue:
			within, cancel := context.WithTimeout(ctx, longest)
			if err := l.measure(within, &scanner, j); err != nil && ctx.Err() == nil {
				log.Warn("what a container wrote cannot be measured", "container", j.id, "err", err)
			}
			cancel()
		}
	}
}

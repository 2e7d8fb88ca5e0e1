package probes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
)

// world answers exec probes and writes down, by seconds since its start, what happened.
type world struct {
	start time.Time
	mu    sync.Mutex
	lines []string
	// answer decides the exit code of the n-th probe (from 1) of a command.
	answer func(cmd string, n int) (exit int, err error)
	takes  time.Duration
	counts map[string]int
	active int
	most   int
}

func (w *world) log(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf("%g ", time.Since(w.start).Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) exec(ctx context.Context, id string, cmd []string, timeout time.Duration) (int, []byte, error) {
	w.mu.Lock()
	w.counts[cmd[0]]++
	n := w.counts[cmd[0]]
	w.active++
	w.most = max(w.most, w.active)
	w.mu.Unlock()
	defer func() { w.mu.Lock(); w.active--; w.mu.Unlock() }()
	w.log("%s", cmd[0])
	if w.takes > 0 {
		select {
		case <-time.After(min(w.takes, timeout)):
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
		if w.takes > timeout {
			return 0, nil, context.DeadlineExceeded
		}
	}
	exit, err := w.answer(cmd[0], n)
	return exit, []byte("out"), err
}

// run starts a Prober in a synctest bubble and ends it after f.
func run(t *testing.T, f func(w *world, p *Prober)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{start: time.Now(), counts: map[string]int{}, answer: func(string, int) (int, error) { return 0, nil }}
		p := New(Config{
			Exec:   w.exec,
			Report: func(uid, id string, k Kind, ok bool, m string) { w.log("%s/%s %s=%v %s", uid, id, k, ok, m) },
			Failed: func(_ string, _ *Target, m string) { w.log("! %s", m) },
			Logger: slog.New(slog.DiscardHandler),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		f(w, p)
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
}

func target(kind Kind, cmd string, change func(*v1.Probe)) Target {
	probe := &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{cmd}}}, PeriodSeconds: 10}
	if change != nil {
		change(probe)
	}
	return Target{ContainerID: "c", Kind: kind, Probe: probe, StartedAt: time.Now()}
}

func (w *world) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.lines {
		w.lines[i] = strings.TrimSpace(w.lines[i])
	}
	if !slices.Equal(w.lines, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(w.lines, "\n\t"), strings.Join(want, "\n\t"))
	}
	w.lines = nil
}

func TestReadiness(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.answer = func(_ string, n int) (int, error) { return map[int]int{1: 1, 4: 1, 5: 1, 6: 1}[n], nil }
		p.Set("u", []Target{target(Readiness, "r", nil)})
		time.Sleep(61 * time.Second)
		w.expect(t, "0 r", "0 ! Readiness probe failed: out",
			"10 r", "10 u/c readiness=true", "20 r",
			"30 r", "30 ! Readiness probe failed: out", "40 r", "40 ! Readiness probe failed: out",
			"50 r", "50 ! Readiness probe failed: out", "50 u/c readiness=false out",
			"60 r", "60 u/c readiness=true")
	})
}

func TestInitialDelayCountsFromTheStart(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		time.Sleep(time.Second)
		one := target(Readiness, "r", func(v *v1.Probe) { v.InitialDelaySeconds = 7 })
		time.Sleep(3 * time.Second)
		p.Set("u", []Target{one})
		time.Sleep(10 * time.Second)
		w.expect(t, "8 r", "8 u/c readiness=true")
	})
}

func TestClockSetBackDelaysNoLongerThanTheDelay(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		one := target(Readiness, "r", func(v *v1.Probe) { v.InitialDelaySeconds = 7 })
		one.StartedAt = time.Now().Add(24 * time.Hour)
		p.Set("u", []Target{one})
		time.Sleep(8 * time.Second)
		w.expect(t, "7 r", "7 u/c readiness=true")
	})
}

func TestLivenessFailureIsFinal(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.answer = func(_ string, n int) (int, error) { return 1, nil }
		fail2 := func(v *v1.Probe) { v.FailureThreshold = 2; v.PeriodSeconds = 1 }
		p.Set("u", []Target{target(Liveness, "l", fail2)})
		time.Sleep(time.Minute)
		w.expect(t, "0 l", "0 ! Liveness probe failed: out", "1 l", "1 ! Liveness probe failed: out", "1 u/c liveness=false out")
		again := target(Liveness, "l", fail2)
		again.ContainerID = "c2" // restarted: a new instance is probed afresh
		p.Set("u", []Target{again})
		time.Sleep(time.Minute)
		w.expect(t, "60 l", "60 ! Liveness probe failed: out", "61 l", "61 ! Liveness probe failed: out", "61 u/c2 liveness=false out")
	})
}

func TestStartupGatesTheOthers(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.answer = func(cmd string, n int) (int, error) {
			if cmd == "s" && n < 3 {
				return 1, nil
			}
			return 0, nil
		}
		p.Set("u", []Target{target(Readiness, "r", nil), target(Startup, "s", func(v *v1.Probe) { v.PeriodSeconds = 2 }), target(Liveness, "l", func(v *v1.Probe) { v.InitialDelaySeconds = 6 })})
		time.Sleep(15 * time.Second)
		w.expect(t, "0 s", "0 ! Startup probe failed: out", "2 s", "2 ! Startup probe failed: out", "4 s", "4 u/c startup=true",
			"4 r", "4 u/c readiness=true", "6 l", "14 r")
	})
}

func TestAdoptedContainers(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		old := time.Now().Add(-time.Hour)
		ready, started, alive := target(Readiness, "r", nil), target(Startup, "s", nil), target(Liveness, "l", nil)
		for _, one := range []*Target{&ready, &started, &alive} {
			one.StartedAt, one.Initial = old, Success
		}
		p.Set("u", []Target{ready, started, alive})
		time.Sleep(10*time.Second - time.Nanosecond)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.counts["r"] != 1 || w.counts["l"] != 1 || w.counts["s"] != 0 || len(w.lines) != 2 {
			t.Errorf("within one period after a restart: %v %q; want one of r and l, no report", w.counts, w.lines)
		}
	})
}

func TestErrorsAreTriedAgainAndCountNowhere(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.answer = func(_ string, n int) (int, error) {
			if n > 1 && n < 5 {
				return 0, errors.New("no such runtime")
			}
			return 1, nil
		}
		p.Set("u", []Target{target(Liveness, "l", func(v *v1.Probe) { v.FailureThreshold = 2 })})
		time.Sleep(21 * time.Second)
		w.expect(t, "0 l", "0 ! Liveness probe failed: out",
			"10 l", "10 l", "10 l", "10 ! Liveness probe errored and resulted in unknown state: no such runtime",
			"20 l", "20 ! Liveness probe failed: out", "20 u/c liveness=false out")
	})
}

func TestExecTimeoutIsAFailure(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.takes = 5 * time.Second
		p.Set("u", []Target{target(Liveness, "l", func(v *v1.Probe) { v.TimeoutSeconds = 2; v.FailureThreshold = 1 })})
		time.Sleep(3 * time.Second)
		w.expect(t, "0 l", `2 ! Liveness probe failed: command timed out: "l" timed out after 2s`,
			`2 u/c liveness=false command timed out: "l" timed out after 2s`)
	})
}

func TestSlowProbesDoNotPileUp(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.takes = 2500 * time.Millisecond
		p.Set("u", []Target{target(Readiness, "r", func(v *v1.Probe) { v.PeriodSeconds = 1; v.TimeoutSeconds = 5 })})
		time.Sleep(6 * time.Second)
		w.expect(t, "0 r", "2.5 u/c readiness=true", "2.5 r", "5 r")
		if w.most != 1 {
			t.Errorf("%d at once", w.most)
		}
		p.Forget("u")
	})
}

func TestSetKeepsWhatIsUnchanged(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		for range 25 {
			p.Set("u", []Target{target(Readiness, "r", nil)}) // equal, not identical
			time.Sleep(time.Second)
		}
		w.expect(t, "0 r", "0 u/c readiness=true", "10 r", "20 r")
		p.Set("u", []Target{target(Readiness, "q", nil)}) // changed: afresh, the verdict stays
		time.Sleep(time.Second)
		w.expect(t, "25 q")
	})
}

func TestForgottenProbesAreCanceledAndSilent(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.takes = time.Hour
		p.Set("u", []Target{target(Readiness, "r", func(v *v1.Probe) { v.TimeoutSeconds = 3600 })})
		time.Sleep(time.Second)
		p.Forget("u")
		time.Sleep(time.Minute)
		w.expect(t, "0 r")
		if len(p.queue) != 0 || len(p.pods) != 0 || w.active != 0 {
			t.Errorf("left: queue %d pods %d active %d", len(p.queue), len(p.pods), w.active)
		}
	})
}

func TestTrigger(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.answer = func(_ string, n int) (int, error) { return map[bool]int{true: 1}[n < 3], nil }
		p.Set("u", []Target{target(Readiness, "r", nil)})
		time.Sleep(3 * time.Second)
		p.Trigger("u")
		time.Sleep(9 * time.Second)
		w.expect(t, "0 r", "0 ! Readiness probe failed: out", "3 r", "3 ! Readiness probe failed: out")
		time.Sleep(2 * time.Second)
		p.Trigger("u") // ready by now: nothing
		p.Trigger("nobody")
		time.Sleep(time.Second)
		w.expect(t, "13 r", "13 u/c readiness=true")
	})
}

func TestTriggerWithinTheInitialDelay(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		p.Set("u", []Target{target(Readiness, "r", func(v *v1.Probe) { v.InitialDelaySeconds = 5 })})
		time.Sleep(time.Second)
		p.Trigger("u")
		time.Sleep(5 * time.Second)
		w.expect(t, "5 r", "5 u/c readiness=true")
	})
}

func TestWorkersAreBounded(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		w.takes = 500 * time.Millisecond
		for i := range 3 * maxExec {
			p.Set(fmt.Sprint(i), []Target{target(Liveness, fmt.Sprint("l", i), nil)})
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if w.most != maxExec || len(w.counts) != 3*maxExec || p.exec.active != 0 {
			t.Errorf("%d at once, %d probed, %d workers left; want %d, %d, 0", w.most, len(w.counts), p.exec.active, maxExec, 3*maxExec)
		}
	})
}

// TestIdleNeverWakes: with only held and forgotten probes nothing is queued, so
// the timer is off.
func TestIdleNeverWakes(t *testing.T) {
	run(t, func(w *world, p *Prober) {
		p.Set("u", []Target{target(Startup, "s", nil)})
		time.Sleep(24 * time.Hour)
		w.expect(t, "0 s", "0 u/c startup=true")
		if len(p.queue) != 0 {
			t.Errorf("%d probes wait for nothing", len(p.queue))
		}
	})
}

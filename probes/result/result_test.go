package result

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestVerdicts(t *testing.T) {
	for _, tc := range []struct {
		name     string
		kind     Kind
		ok, fail int32
		initial  Verdict
		outcomes string // + success, - failure
		want     string // per outcome: . no change, S or F the new verdict
		held     bool
	}{
		{name: "not ready is the start", kind: Readiness, ok: 1, fail: 3, outcomes: "----", want: "...."},
		{name: "ready at the first success", kind: Readiness, ok: 1, fail: 3, outcomes: "-+", want: ".S"},
		{name: "ready after two", kind: Readiness, ok: 2, fail: 3, outcomes: "+-++", want: "...S"},
		{name: "not ready after three", kind: Readiness, ok: 1, fail: 3, outcomes: "+--+---+", want: "S.....FS"},
		{name: "adopted as ready", kind: Readiness, ok: 1, fail: 2, initial: Success, outcomes: "+--", want: "..F"},
		{name: "alive is the start", kind: Liveness, ok: 1, fail: 2, outcomes: "++-+--", want: ".....F", held: true},
		{name: "adopted as dead", kind: Liveness, ok: 1, fail: 1, initial: Failed, held: true},
		{name: "started", kind: Startup, ok: 1, fail: 30, outcomes: "---+", want: "...S", held: true},
		{name: "never started", kind: Startup, ok: 1, fail: 3, outcomes: "---", want: "..F", held: true},
		{name: "adopted as started", kind: Startup, ok: 1, fail: 3, initial: Success, held: true},
		{name: "thresholds unset", kind: Startup, outcomes: "-", want: "F", held: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			track := New(tc.kind, Thresholds{tc.ok, tc.fail}, tc.initial)
			var got strings.Builder
			for _, o := range tc.outcomes {
				switch {
				case !track.Observe(o == '+'):
					got.WriteByte('.')
				case track.Verdict() == Success:
					got.WriteByte('S')
				default:
					got.WriteByte('F')
				}
			}
			if got.String() != tc.want || track.Held() != tc.held {
				t.Errorf("verdicts %q held %v, want %q held %v", got.String(), track.Held(), tc.want, tc.held)
			}
		})
	}
}

// TestVerdictFollowsTheLastRun checks the rule itself: the verdict changes to an
// outcome exactly when the last n outcomes, n its threshold, were all that.
func TestVerdictFollowsTheLastRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		th := Thresholds{rapid.Int32Range(1, 4).Draw(t, "ok"), rapid.Int32Range(1, 4).Draw(t, "fail")}
		track := New(Readiness, th, None)
		want, history := Failed, []bool{}
		for _, ok := range rapid.SliceOf(rapid.Bool()).Draw(t, "outcomes") {
			history = append(history, ok)
			need, verdict := int(th.Failure), Failed
			if ok {
				need, verdict = int(th.Success), Success
			}
			run := 0
			for i := len(history) - 1; i >= 0 && history[i] == ok; i-- {
				run++
			}
			before := want
			if run >= need {
				want = verdict
			}
			if changed := track.Observe(ok); changed != (want != before) || track.Verdict() != want {
				t.Fatalf("after %v: changed %v, verdict %v; want %v", history, changed, track.Verdict(), want)
			}
		}
	})
}

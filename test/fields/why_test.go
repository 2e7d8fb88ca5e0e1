package fields

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/node"
	"github.com/berthd/berth/test/patience"
)

// leastFaults is how many faults `berth why` must at least explain.
const leastFaults = 60

// TestWhy injects every fault of the directory faults and asks `berth why` about
// it: the answer must name the cause and the next step. All agents are then killed
// and started again, and must answer the same, with nothing injected anew.
// $BERTH_WHY_TIMES names a file that gets how long the answers took.
func TestWhy(t *testing.T) {
	cases, err := Load("faults")
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < leastFaults {
		t.Errorf("%d faults, want at least %d", len(cases), leastFaults)
	}
	binary := node.Binary(t, "BERTH_BIN")
	shared := start(t, binary)
	w := &asked{}
	var all []*running
	dirs := t.TempDir()
	for _, c := range cases {
		r := &running{t: t, home: t, c: c, a: shared, dir: filepath.Join(dirs, c.Name), pod: "f-" + c.Name}
		if err := os.Mkdir(r.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if c.Alone {
			r.boot = func(flags []string) *node.Agent { return start(t, binary, flags...) }
		}
		all = append(all, r)
	}
	t.Run("fault", func(t *testing.T) { eachFault(t, all, (*running).run) })
	for _, r := range all {
		if !r.over {
			w.ask(r)
		}
	}
	killed := map[string]bool{}
	for _, r := range all {
		if !killed[r.a.Dir] {
			killed[r.a.Dir] = true
			r.a.Kill9()
			r.a.Start()
		}
	}
	t.Run("restarted", func(t *testing.T) { eachFault(t, all, (*running).runAgain) })
	w.report(t)
}

// eachFault runs do for every case that has not been skipped or failed before.
func eachFault(t *testing.T, all []*running, do func(*running)) {
	for _, r := range all {
		if r.over {
			continue
		}
		t.Run(r.c.Name, func(t *testing.T) {
			t.Parallel()
			home, agent := r.t, r.a
			r.t, r.a, r.over = t, r.a.For(t), true
			do(r)
			r.t, r.over = home, false
			if r.a.Dir == agent.Dir {
				r.a = agent
			} else {
				r.a = r.a.For(home)
			}
		})
	}
}

// runAgain asks once more what the script asks.
func (r *running) runAgain() {
	steps := r.c.Steps
	defer func() { r.c.Steps = steps }()
	r.c.Steps = slices.DeleteFunc(slices.Clone(steps), func(s Step) bool {
		return s.Verb != "why" && !(s.Verb == "berth" && strings.HasPrefix(s.Args, "why"))
	})
	r.run()
}

// asked measures how long answers take: of `berth why`, and of the agent alone.
type asked struct{ commands, answers durations }

func (w *asked) ask(r *running) {
	agent := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.a.Socket())
	}}}
	defer agent.CloseIdleConnections()
	began := time.Now()
	if _, err := r.a.Berth("why", r.pod); err != nil {
		return // a manifest's problem, which the script has asked about by another name
	}
	w.commands = append(w.commands, time.Since(began))
	began = time.Now()
	resp, err := agent.Get("http://agent/berth/v1/why/default/" + r.pod)
	if err != nil {
		r.home.Error(err)
		return
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		r.home.Error(err)
	}
	w.answers = append(w.answers, time.Since(began))
}

type durations []time.Duration

func (d durations) String() string {
	d = slices.Sorted(slices.Values(d))
	return fmt.Sprintf("p50 %v, p99 %v, slowest %v", d[len(d)/2].Round(time.Microsecond), d[len(d)*99/100].Round(time.Microsecond), d[len(d)-1].Round(time.Microsecond))
}

func (w *asked) report(t *testing.T) {
	if len(w.answers) == 0 {
		return // a pattern has chosen none
	}
	text := fmt.Sprintf("%d faults, all there at once\nberth why:       %v\nthe agent alone: %v\n", len(w.answers), w.commands, w.answers)
	t.Log(text)
	if slowest := slices.Max(w.commands); slowest > patience.For(time.Second) {
		t.Errorf("an answer took %v, longer than a second", slowest)
	}
	if path := os.Getenv("BERTH_WHY_TIMES"); path != "" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
}

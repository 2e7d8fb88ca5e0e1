package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// entry is one line of the ledger: a round that was run to its end.
type entry struct {
	When                    time.Time
	Commit, Runtime, Mode   string
	Passed, Failed, Skipped int
	Seconds                 int
	Failures, Left          []string
}

// clean tells whether the round found nothing.
func (e entry) clean() bool { return e.Failed == 0 && len(e.Left) == 0 }

func (e entry) String() string {
	s := fmt.Sprintf("%s %s %-10s %-9s passed=%d failed=%d skipped=%d seconds=%d", e.When.UTC().Format(time.RFC3339), e.Commit, e.Runtime, e.Mode,
		e.Passed, e.Failed, e.Skipped, e.Seconds)
	if len(e.Failures) > 0 {
		s += " | failed: " + strings.Join(e.Failures, "; ")
	}
	if len(e.Left) > 0 {
		s += " | left: " + strings.Join(e.Left, "; ")
	}
	return s
}

const ledgerHead = `# Rounds of critest 1.36.0, one a line, made by make critest. A round counts for the commits after its own that change
# nothing below cri, cni and cmd and no module; one of a tree with other changes ("-dirty") counts for none.
`

// parseEntry reads a line that String wrote.
func parseEntry(line string) (e entry, err error) {
	parts := strings.Split(line, " | ")
	f := strings.Fields(parts[0])
	if len(f) != 8 {
		return e, fmt.Errorf("a line of the ledger has %d fields and not 8: %q", len(f), line)
	}
	if e.When, err = time.Parse(time.RFC3339, f[0]); err != nil {
		return e, fmt.Errorf("a line of the ledger: %w", err)
	}
	e.Commit, e.Runtime, e.Mode = f[1], f[2], f[3]
	for i, to := range []*int{&e.Passed, &e.Failed, &e.Skipped, &e.Seconds} {
		_, n, _ := strings.Cut(f[4+i], "=")
		if *to, err = strconv.Atoi(n); err != nil {
			return e, fmt.Errorf("a line of the ledger: %w", err)
		}
	}
	for _, p := range parts[1:] {
		if all, ok := strings.CutPrefix(p, "failed: "); ok {
			e.Failures = strings.Split(all, "; ")
		} else if all, ok := strings.CutPrefix(p, "left: "); ok {
			e.Left = strings.Split(all, "; ")
		}
	}
	return e, nil
}

// ledger is the file of rounds, and beside it the verdicts of those that count.
type ledger struct {
	mu      sync.Mutex
	dir     string
	entries []entry
}

func openLedger(dir string) (*ledger, error) {
	l := &ledger{dir: dir}
	body, err := os.ReadFile(l.path())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, line := range strings.Split(string(body), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			return nil, err
		}
		l.entries = append(l.entries, e)
	}
	return l, nil
}

func (l *ledger) path() string { return filepath.Join(l.dir, "critest.txt") }

// add puts a round on the ledger and its verdicts beside those of the rounds
// that count with it.
func (l *ledger) add(e entry, o outcome, counts func(string) bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	dir, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer dir.Close() // and with it the lock: another invocation may add as well
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", l.dir, err)
	}
	all, err := readVerdicts(l.dir)
	if err != nil {
		return err
	}
	all.add(e, o, counts)
	if err := all.write(l.dir); err != nil {
		return err
	}
	head := ""
	if _, err := os.Stat(l.path()); errors.Is(err, os.ErrNotExist) {
		head = ledgerHead
	}
	f, err := os.OpenFile(l.path(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(head + e.String() + "\n")
	l.entries = append(l.entries, e)
	return errors.Join(err, f.Close())
}

// clean counts the clean rounds that count.
func (l *ledger) clean(runtime, mode string, counts func(string) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, e := range l.entries {
		if e.Runtime == runtime && e.Mode == mode && (runtime == peer || e.clean() && counts(e.Commit)) {
			n++
		}
	}
	return n
}

// wanted are the rounds that the ledger is to hold of a runtime, in their order.
func wanted(o options, runtime string) []struct {
	mode string
	n    int
} {
	serial, parallel := o.serial, o.parallel
	switch runtime {
	case peer:
		serial, parallel = min(serial, 1), min(parallel, 1)
	case "runc-peer":
		serial, parallel = min(serial, 1), min(parallel, 3)
	}
	return []struct {
		mode string
		n    int
	}{{"serial", serial}, {"websocket", min(serial, 1)}, {"parallel", parallel}}
}

// rounds runs what the ledger lacks, and writes the page.
func rounds(ctx context.Context, o options) error {
	l, err := openLedger(o.results)
	if err != nil {
		return err
	}
	counts := sameCode(ctx, o.commit)
	st, err := prepare(o)
	if err != nil {
		return err
	}
	defer st.close()
	slots := make(chan struct{}, max(1, o.jobs))
	names := strings.Split(o.runtimes, ",")
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = st.roundsOf(ctx, l, name, counts)
		})
	}
	all.Wait()
	return errors.Join(append(errs, writePage(o.results))...)
}

// roundsOf runs what the ledger lacks of one runtime. It stops at a round that
// is not clean.
func (st *stage) roundsOf(ctx context.Context, l *ledger, name string, counts func(string) bool) error {
	done := 0
	for _, w := range wanted(st.o, name) {
		for n := l.clean(name, w.mode, counts); n < w.n && ctx.Err() == nil && (st.o.limit == 0 || done < st.o.limit); n++ {
			done++
			o, err := st.round(ctx, name, w.mode)
			if err != nil {
				return fmt.Errorf("%s round on %s: %w", w.mode, name, err)
			}
			e := entry{When: time.Now(), Commit: st.o.commit, Runtime: name, Mode: w.mode, Passed: o.count("passed"), Failed: o.count("failed"),
				Skipped: o.count("skipped"), Seconds: o.Seconds, Failures: o.failed(), Left: o.Left}
			fmt.Println(e)
			if err := l.add(e, o, counts); err != nil {
				return err
			}
			if !e.clean() && name != peer {
				return fmt.Errorf("the %s round on %s was not clean", w.mode, name)
			}
		}
	}
	return ctx.Err()
}

// sameCode tells of commits whether their rounds count for commit.
func sameCode(ctx context.Context, commit string) func(string) bool {
	known := map[string]bool{}
	var mu sync.Mutex
	return func(c string) bool {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasSuffix(c, "-dirty") || strings.HasSuffix(commit, "-dirty") {
			return false
		}
		if c == commit {
			return true
		}
		same, ok := known[c]
		if !ok {
			same = exec.CommandContext(ctx, "git", "-c", "safe.directory=*", "diff", "--quiet", c, commit, "--", "cri", "cni", "cmd", "go.mod").Run() == nil
			known[c] = same
		}
		return same
	}
}

// verdicts are those of every spec by each runtime, over the rounds of its code.
type verdicts map[string]*verdictsOf

type verdictsOf struct {
	Commit string
	About  string // versions
	Specs  map[string]verdict
}

func readVerdicts(dir string) (verdicts, error) {
	all := verdicts{}
	body, err := os.ReadFile(filepath.Join(dir, "critest.json"))
	if errors.Is(err, os.ErrNotExist) {
		return all, nil
	}
	if err == nil {
		err = json.Unmarshal(body, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read the verdicts of the earlier rounds: %w", err)
	}
	return all, nil
}

func (v verdicts) write(dir string) error {
	body, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "critest.json"), append(body, '\n'), 0o644)
}

// add merges a round's verdicts: of ours the worst counts, of the peer's the best.
func (v verdicts) add(e entry, o outcome, counts func(string) bool) {
	of := v[e.Runtime]
	if of == nil || e.Runtime != peer && !counts(of.Commit) {
		of = &verdictsOf{Specs: map[string]verdict{}}
		v[e.Runtime] = of
	}
	of.Commit, of.About = e.Commit, o.About
	rank := map[string]int{"": 0, "skipped": 1, "passed": 2, "failed": 3}
	if e.Runtime == peer {
		rank = map[string]int{"": 0, "skipped": 1, "failed": 2, "passed": 3}
	}
	for name, got := range o.Specs {
		if rank[got.State] > rank[of.Specs[name].State] {
			of.Specs[name] = got
		}
	}
}

// Command critest runs critest, the CRI validation suite, against `berth
// runtime` and against containerd, in rounds, and keeps a ledger of them. It owns
// what a round needs and nothing of what is tested: the images that critest
// names, built from local parts; the registry that mirrors the registries they
// are named after; the runtimes with directories of their own; and the pages
// that tell the results.
//
// Every round runs in network and IPC namespaces of its own, in which the same
// registry listens: rounds of two runtimes may run at the same time although
// critest wants fixed host ports, and nothing of a round stays on the host.
//
//	critest [flags] short      one round of -mode on -runtimes; no ledger
//	critest [flags] rounds     the rounds that the ledger lacks; then the page
//	critest [flags] benchmark  critest's benchmarks of each of -runtimes
//	critest [flags] page       the page, and whether Berth passes what containerd does
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// options are the command line's.
type options struct {
	berth, peer, results, commit, keep string
	runtimes, focus, mode              string
	serial, parallel, jobs, limit      int
}

func main() {
	var o options
	flag.StringVar(&o.berth, "berth", "bin/berth", "the program that is tested")
	flag.StringVar(&o.peer, "peer", "", "directory of critest, ginkgo, containerd, its shim, runc and the plugins")
	flag.StringVar(&o.results, "results", "docs/results", "directory of the ledger and the page")
	flag.StringVar(&o.commit, "commit", "", "the commit that the program was built from")
	flag.StringVar(&o.keep, "keep", "", "directory that gets the logs of failed rounds (default: critest-logs in the temporary directory)")
	flag.StringVar(&o.runtimes, "runtimes", "crun,runc,containerd", "what rounds are run of: crun, runc, runc-peer, containerd")
	flag.StringVar(&o.focus, "focus", "", "run only the specs that match (short)")
	flag.StringVar(&o.mode, "mode", "parallel", "serial, parallel or websocket (short)")
	flag.IntVar(&o.serial, "serial", 3, "how many serial rounds the ledger is to hold of each of Berth's runtimes")
	flag.IntVar(&o.parallel, "parallel", 10, "how many parallel rounds")
	flag.IntVar(&o.jobs, "jobs", 1, "how many runtimes have rounds at the same time")
	flag.IntVar(&o.limit, "limit", 0, "how many rounds of each runtime are run now (0: all that are lacking)")
	setting := flag.String("inside", "", "run one round (internal)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	if *setting != "" {
		err = insideFile(ctx, *setting)
	} else {
		err = command(ctx, o, flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, o options, what string) error {
	switch what {
	case "short":
		return short(ctx, o)
	case "rounds":
		return rounds(ctx, o)
	case "benchmark":
		return benchmark(ctx, o)
	case "page":
		return writePage(o.results)
	}
	return fmt.Errorf("no command %q: short, rounds, benchmark or page", what)
}

func insideFile(ctx context.Context, path string) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s setting
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	return inside(ctx, s)
}

// stage is what all rounds of one invocation share.
type stage struct {
	o    options
	work string // removed at the end
	own  string // our copy of critest
}

// prepare builds the images and fills the registry with them.
func prepare(o options) (*stage, error) {
	work, err := os.MkdirTemp("", "critest")
	if err != nil {
		return nil, err
	}
	st := &stage{o: o, work: work, own: filepath.Join(work, "critest")}
	if err := os.Chmod(work, 0o711); err != nil { // roots of user namespaces pass through it
		return nil, err
	}
	digest, err := fill(work)
	if err == nil {
		err = ownDigest(filepath.Join(o.peer, "critest"), st.own, digest)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(work))
	}
	return st, nil
}

func (st *stage) close() { _ = os.RemoveAll(st.work) } // a temporary directory

// round runs one round in namespaces of its own. Its logs are kept if a spec
// fails, or the round does.
func (st *stage) round(ctx context.Context, runtime, mode string) (o outcome, err error) {
	dir, err := os.MkdirTemp(st.work, "r")
	if err != nil {
		return o, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		return o, err
	}
	s := setting{Runtime: runtime, Mode: mode, Berth: st.o.berth, Peer: st.o.peer, Critest: st.own, Images: st.work, Dir: dir, Focus: st.o.focus}
	body, err := json.Marshal(s)
	if err != nil {
		return o, err
	}
	if err := os.WriteFile(dir+"/setting.json", body, 0o600); err != nil {
		return o, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-inside", dir+"/setting.json")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it cleans up, and ends
	runErr := cmd.Run()
	if body, err = os.ReadFile(dir + "/outcome.json"); err == nil {
		err = json.Unmarshal(body, &o)
	}
	if err = errors.Join(runErr, err); err == nil && o.count("failed") == 0 && len(o.Left) == 0 {
		return o, nil
	}
	kept, keepErr := st.keepLogs(dir, runtime+"-"+mode)
	if keepErr != nil {
		kept = keepErr.Error()
	}
	fmt.Fprintf(os.Stderr, "%s %s: the logs are kept in %s\n", runtime, mode, kept)
	return o, err
}

func (st *stage) keepLogs(dir, name string) (string, error) {
	to := st.o.keep
	if to == "" {
		to = filepath.Join(os.TempDir(), "critest-logs")
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return "", err
	}
	to, err := os.MkdirTemp(to, name+"-")
	if err != nil {
		return "", err
	}
	for _, f := range []string{"runtime.log", "critest.log", "outcome.json"} {
		body, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			continue // the round did not get so far
		}
		if err := os.WriteFile(filepath.Join(to, f), body, 0o644); err != nil {
			return to, err
		}
	}
	return to, nil
}

// short runs one round of each runtime.
func short(ctx context.Context, o options) error {
	st, err := prepare(o)
	if err != nil {
		return err
	}
	defer st.close()
	var failed error
	for _, r := range strings.Split(o.runtimes, ",") {
		got, err := st.round(ctx, r, o.mode)
		if err != nil {
			return fmt.Errorf("round on %s: %w", r, err)
		}
		fmt.Printf("%s: %d passed, %d failed, %d skipped in %d s\n", r, got.count("passed"), got.count("failed"), got.count("skipped"), got.Seconds)
		for _, name := range got.failed() {
			fmt.Printf("  failed: %s: %s\n", name, got.Specs[name].Reason)
		}
		for _, l := range got.Left {
			fmt.Printf("  left behind: %s\n", l)
		}
		if n := got.count("failed"); n > 0 || len(got.Left) > 0 {
			failed = fmt.Errorf("critest found faults")
		}
	}
	return failed
}

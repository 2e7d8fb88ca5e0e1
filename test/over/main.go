// Command over runs the tests of pods, those of test/node and test/fields, with
// agents whose runtime is another process, and keeps what came of it in a page
// below docs/results. It owns the count: every test function, every case and every
// fault has been run, or says by one line why it cannot hold over that runtime
// (node.NotOver, or "not RUNTIME REASON" in a case); one that did neither is a
// failure.
//
//	over [-runtime containerd|socket] [-parallel N] [-short] [-ledger FILE] [-page FILE] [-commit HASH]
//
// With a ledger, only what has not passed yet is run.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/test/node"
)

// options are the command line's.
type options struct {
	runtime  node.Over
	parallel int
	short    bool
	page     string
	ledger   string
	commit   string
}

// Of the short form: what a person would notice first if it broke, in three
// minutes on two cores.
const (
	shortNode   = `^(TestOutage|TestRegistry|TestStorageLimits)$|^TestExamples$/^runc$|^TestResize$`
	shortFields = `^TestFields$/^runc$/^case$/^(capabilities|command|empty-dir|env-refs|grace|groups|host-path|image-pull-policy|image-pull-secrets|image-volume|init-restart|liveness-exec|ports|prestop-exec|privileged|reason-config|reason-network|reason-oom|reason-pull|reason-removed|reason-start|resize-policy|run-as|runtime-class|seccomp|secret-volume|share-process-namespace|streams|sysctls|termination-message)$`
)

func main() {
	var o options
	runtime := flag.String("runtime", string(node.Containerd), "the runtime below the agents: containerd or socket")
	flag.IntVar(&o.parallel, "parallel", 8, "how many cases run at once")
	flag.BoolVar(&o.short, "short", false, "a subset, in three minutes; nothing is written")
	flag.StringVar(&o.page, "page", "", "the page to write")
	flag.StringVar(&o.ledger, "ledger", "", "where outcomes are kept; what has passed is not run again")
	flag.StringVar(&o.commit, "commit", "unknown", "what was tested")
	flag.Parse()
	o.runtime = node.Over(*runtime)
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "over:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.runtime != node.Containerd && o.runtime != node.Socket {
		return fmt.Errorf("no runtime %q: want containerd or socket", o.runtime)
	}
	began := time.Now()
	kept, err := readLedger(o.ledger)
	if err != nil {
		return fmt.Errorf("read the ledger %s: %w", o.ledger, err)
	}
	var both errgroup.Group // the tests of node mostly wait, one after the other
	var mu sync.Mutex
	for path, pattern := range map[string]string{"./test/node": shortNode, "./test/fields": shortFields} {
		if !o.short {
			pattern = kept.left(filepath.Base(path))
		}
		if pattern == "" {
			continue
		}
		both.Go(func() error {
			of, err := tested(o, path, pattern)
			mu.Lock()
			defer mu.Unlock()
			kept.add(of, o.commit)
			return errors.Join(err, kept.write(o.ledger))
		})
	}
	if err := both.Wait(); err != nil {
		return err
	}
	seen := kept.outcomes()
	o.commit = strings.Join(kept.Commits, ", then ")
	kept.Took += time.Since(began)
	if err := kept.write(o.ledger); err != nil {
		return err
	}
	took := kept.Took
	fmt.Println(seen.summary(o, took))
	if !o.short {
		missing, err := seen.missing()
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return fmt.Errorf("neither run nor said not to hold over %s: %v", o.runtime, missing)
		}
		if o.page != "" {
			if err := os.WriteFile(o.page, []byte(seen.markdown(o, took)), 0o644); err != nil {
				return err
			}
		}
	}
	if failed := seen.with("fail"); len(failed) > 0 {
		return fmt.Errorf("%d tests failed: %v", len(failed), failed)
	}
	return nil
}

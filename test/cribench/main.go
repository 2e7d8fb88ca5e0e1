// Command cribench measures the life of a pod over CRI: RunPodSandbox,
// CreateContainer, StartContainer until the workload has run, StopContainer,
// RemoveContainer, StopPodSandbox, RemovePodSandbox. Berth (with crun and with
// runc) and containerd stand side by side on one machine, with the same image,
// the same requests, the same CNI plugins and the same network configuration;
// lives alternate between them, so that a busy machine slows all of them alike.
//
// What is compared are ratios: the figures themselves are this machine's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

var (
	lives  = flag.Int("lives", 200, "lives of each side, one at a time")
	flight = flag.Int("flight", 16, "lives at the same time")
	rounds = flag.Int("rounds", 3, "rounds of lives at the same time; the median counts")
	batch  = flag.Int("batch", 48, "lives of one such round")
	pods   = flag.Int("pods", 50, "pods whose memory is measured")
	modes  = flag.String("modes", "CONTAINER,POD", "PID modes")
	only   = flag.String("only", "", "names of the sides to measure, separated by semicolons (default: all)")
	masq   = flag.Bool("masquerade", false, "the network masquerades (ipMasq), which costs both sides firewall rules for each pod")
	berth  = flag.String("berth", "bin/berth", "the berth binary")
	peer   = flag.String("peer", os.Getenv("HOME")+"/.cache/berth-peer/bin", "directory of the peer's binaries")
	out    = flag.String("o", "", "also write the result as Markdown to this file")
	suite  = flag.Bool("critest", false, "also run critest -benchmark against every side")
)

func main() {
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cribench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	work, err := os.MkdirTemp("/tmp", "cribench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o711); err != nil {
		return err
	}
	archive, err := buildImages(work)
	if err != nil {
		return err
	}
	sides, err := choose(work)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.down())
		}
	}()
	for _, s := range sides {
		if err := s.up(ctx, archive); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	var all []Result
	for _, m := range strings.Split(*modes, ",") {
		mode, err := pidMode(m)
		if err != nil {
			return err
		}
		results, err := measure(ctx, sides, mode)
		if err != nil {
			return err
		}
		all = append(all, results...)
	}
	var benchmarks []critestFigures
	if *suite {
		for _, s := range sides {
			fmt.Fprintf(os.Stderr, "%s: critest -benchmark\n", s.name)
			f, err := critestBenchmark(ctx, s, filepath.Join(*peer, "critest"), work)
			if err != nil {
				return err
			}
			benchmarks = append(benchmarks, f)
		}
	}
	text := table(all, benchmarks)
	fmt.Print(text)
	if *out != "" {
		return os.WriteFile(*out, []byte(text), 0o644)
	}
	return nil
}

// choose makes the sides that were asked for; the last is the peer.
func choose(work string) ([]*side, error) {
	binary, err := filepath.Abs(*berth)
	if err != nil {
		return nil, err
	}
	crun, runc := "crun", filepath.Join(*peer, "runc")
	all := []*side{
		newSide("berth, crun", work, 0, berthRuntime{binary, crun}),
		newSide("berth, runc", work, 1, berthRuntime{binary, runc}),
		newSide("containerd, runc", work, 2, containerd{*peer}),
	}
	if *only == "" {
		return all, nil
	}
	var sides []*side
	for _, name := range strings.Split(*only, ";") {
		found := false
		for _, s := range all {
			if s.name == strings.TrimSpace(name) {
				sides, found = append(sides, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-only %q: there is no such side; names are separated by semicolons", name)
		}
	}
	return sides, nil
}

// settle is how long a side is left alone before its memory is read.
const settle = 5 * time.Second

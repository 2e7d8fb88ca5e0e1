package main

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// table is the whole result as Markdown.
func table(all []Result, benchmarks []critestFigures) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Pod life over CRI\n\n`make cri-bench`, commit %s, %s, %d processors. Berth beside containerd 2.4.2 (runc 1.5.2); CNI plugins 1.9.1 run as\n"+
		"processes on every side, from the same files with the same configuration (bridge, host-local, portmap; ipMasq %v); same image, same\n"+
		"requests, state in memory. Lives of the sides alternate. A life is RunPodSandbox, CreateContainer, StartContainer until the workload\n"+
		"has told that it runs, StopContainer (the workload ends on SIGTERM), RemoveContainer, StopPodSandbox, RemovePodSandbox.\n"+
		"The figures are those of a busy machine; the ratios count.\n",
		commit(), time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), *masq)
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].Mode == all[0].Mode {
			n++
		}
		b.WriteString(modeTable(all[:n]))
		all = all[n:]
	}
	b.WriteString(critestTable(benchmarks))
	return b.String()
}

func commit() string {
	out, err := exec.Command("git", "-c", "safe.directory=*", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// modeTable is the table of one PID mode. The last of the sides is the peer,
// with which the others are compared.
func modeTable(sides []Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## PID mode %s\n| |", sides[0].Mode)
	for _, r := range sides {
		fmt.Fprintf(&b, " %s |", r.Side)
	}
	peer := len(sides) - 1
	for _, r := range sides[:peer] {
		fmt.Fprintf(&b, " %s is better by |", r.Side)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(sides)+peer) + "\n")
	row := func(label string, more bool, of func(Result) float64) {
		fmt.Fprintf(&b, "| %s |", label)
		for _, r := range sides {
			fmt.Fprintf(&b, " %.3g |", of(r))
		}
		for _, r := range sides[:peer] {
			ratio := of(sides[peer]) / of(r)
			if more {
				ratio = 1 / ratio
			}
			fmt.Fprintf(&b, " %.1fx |", ratio)
		}
		b.WriteString("\n")
	}
	row(fmt.Sprintf("**whole life, p50** of %d (ms)", len(sides[0].Lives)), false, func(r Result) float64 { return quantile(r.Lives, whole, .5) })
	row("**whole life, p99** (ms)", false, func(r Result) float64 { return quantile(r.Lives, whole, .99) })
	row("until it runs, p50 (ms)", false, func(r Result) float64 { return quantile(began(r.Lives), whole, .5) })
	row("until it runs, p99 (ms)", false, func(r Result) float64 { return quantile(began(r.Lives), whole, .99) })
	for p := range whole {
		row(p.String()+", p50 (ms)", false, func(r Result) float64 { return quantile(r.Lives, p, .5) })
	}
	row(fmt.Sprintf("%d at a time: lives a second", *flight), true, func(r Result) float64 { return r.Throughput })
	row(fmt.Sprintf("%d at a time: whole life, p50 (ms)", *flight), false, func(r Result) float64 { return quantile(r.Flight, whole, .5) })
	row(fmt.Sprintf("%d at a time: whole life, p99 (ms)", *flight), false, func(r Result) float64 { return quantile(r.Flight, whole, .99) })
	row(fmt.Sprintf("**memory a pod**, of %d pods (MiB, PSS)", *pods), false, func(r Result) float64 { return r.PerPodMiB })
	row("memory without pods (MiB, PSS)", false, func(r Result) float64 { return r.BaseMiB })
	return b.String()
}

// began reduces lives to their way up.
func began(all []timing) []timing {
	up := make([]timing, len(all))
	for i, t := range all {
		up[i][whole] = t[runSandbox] + t[createContainer] + t[startContainer]
	}
	return up
}

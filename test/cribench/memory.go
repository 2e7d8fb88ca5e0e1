package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// pss is the proportional memory, in MiB, of a side's own processes.
func pss(s *side) float64 {
	total := 0.0
	for pid, argv := range ownProcesses(s.home) {
		if !slices.Contains(s.kind.programs(), filepath.Base(argv[0])) {
			continue
		}
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(rollup)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kib, _ := strconv.ParseFloat(f[1], 64)
				total += kib / 1024
			}
		}
	}
	return total
}

// ownProcesses are the processes of a side by ID, with their arguments: those
// whose command line names home, and their descendants.
func ownProcesses(home string) map[int][]string {
	type process struct {
		argv   []string
		parent int
	}
	all := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(d + "/cmdline")
		stat, _ := os.ReadFile(d + "/stat")
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(cmdline) == 0 || len(fields) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		all[pid] = process{strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00"), parent}
	}
	own := map[int][]string{}
	for pid := range all {
		for at := pid; at > 1; at = all[at].parent {
			if strings.Contains(strings.Join(all[at].argv, "\x00"), home) {
				own[pid] = all[pid].argv
				break
			}
		}
	}
	return own
}

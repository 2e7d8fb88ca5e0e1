package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is one process of a node.
type process struct {
	argv   []string
	parent int
	stat   []string // the fields of /proc/PID/stat that follow the name
}

// processes are those of the node below home, and no one else's: whose command
// line names home, and their descendants (a workload's names nothing).
func processes(home string) map[int]process {
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
		if len(cmdline) == 0 || len(fields) < 20 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		all[pid] = process{strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00"), parent, fields}
	}
	own := map[int]process{}
	for pid := range all {
		for at := pid; at > 1; at = all[at].parent {
			if strings.Contains(strings.Join(all[at].argv, "\x00"), home) {
				own[pid] = all[pid]
				break
			}
		}
	}
	return own
}

// workloads counts the node's running workloads: of one pod, or of all if pod is empty.
func workloads(n node, pod string) int {
	count := 0
	for _, p := range processes(n.home()) {
		if p.argv[0] == "/stamp" && len(p.argv) > 1 && (pod == "" || p.argv[1] == "/stamps/"+pod) {
			count++
		}
	}
	return count
}

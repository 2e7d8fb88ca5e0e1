package stats

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxProcesses and maxDepth bound what one cgroup can make us read.
const (
	maxProcesses = 1 << 20
	maxDepth     = 16
)

// Processes returns the IDs of the processes in the cgroup at path and in those
// below it, at most most of them; count is how many there are. Threads are not
// processes: Pids counts both.
func (r *Reader) Processes(path string, most int) (ids []int, count uint64, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, 0, fmt.Errorf("cgroup %q: must be an absolute path without dots", path)
	}
	for _, p := range []place{r.pids, r.memory, r.cpu} {
		if p.dir == "" {
			continue
		}
		w := procs{most: most}
		err = w.walk(filepath.Join(p.dir, path), 0)
		if !gone(err) {
			return w.ids, w.count, err
		}
	}
	return nil, 0, fmt.Errorf("cgroup %s: %w", path, fs.ErrNotExist)
}

type procs struct {
	most  int
	ids   []int
	count uint64
}

func (p *procs) walk(dir string, depth int) error {
	f, err := os.Open(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan() && p.count < maxProcesses; p.count++ {
		if id, err := strconv.Atoi(strings.TrimSpace(sc.Text())); err == nil && len(p.ids) < p.most {
			p.ids = append(p.ids, id)
		}
	}
	if depth == maxDepth {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := p.walk(filepath.Join(dir, e.Name()), depth+1); err != nil && !gone(err) && !notSupported(err) {
				return err
			}
		}
	}
	return nil
}

// Package hostgroup makes and removes cgroups that tests and measurements have
// of their own, in every tree of the host, v1 and v2.
package hostgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trees are the mount points of the host's cgroup trees.
func trees() ([]string, error) {
	body, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range bytes.Lines(body) {
		if f := strings.Fields(string(line)); len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			found = append(found, f[1])
		}
	}
	return found, nil
}

// Make makes a cgroup in every tree. path begins with a slash and has one element.
func Make(path string) error {
	all, err := trees()
	if err != nil {
		return err
	}
	for _, t := range all {
		if err := os.MkdirAll(t+path, 0o755); err != nil {
			return fmt.Errorf("make the cgroup %s: %w", path, err)
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // v1: empty, and nothing may enter
			value, err := os.ReadFile(filepath.Join(t, f))
			if err != nil {
				continue // not this tree's
			}
			if err := os.WriteFile(filepath.Join(t+path, f), value, 0o644); err != nil {
				return fmt.Errorf("fill the cgroup %s: %w", path, err)
			}
		}
	}
	return nil
}

// Below lists the cgroups that are below path, by their directories.
func Below(path string) ([]string, error) {
	all, err := trees()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, t := range all {
		_ = filepath.WalkDir(t+path, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && p != t+path {
				dirs = append(dirs, p)
			}
			return nil
		})
	}
	return dirs, nil
}

// Remove removes a cgroup and what is below it. It fails when processes are
// left in one.
func Remove(path string) error {
	all, err := trees()
	if err != nil {
		return err
	}
	below, err := Below(path)
	if err != nil {
		return err
	}
	var errs []error
	for i := len(below) - 1; i >= 0; i-- {
		errs = append(errs, rmdir(below[i]))
	}
	for _, t := range all {
		errs = append(errs, rmdir(t+path))
	}
	return errors.Join(errs...)
}

func rmdir(dir string) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) { // the last process may be on its way out
			return fmt.Errorf("remove the cgroup %s: %w", dir, err)
		}
	}
}

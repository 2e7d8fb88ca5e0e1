//go:build failpoints

// Package failpoint marks the places where the agent may be killed.
package failpoint

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// Environment of a failpoint build:
//
//	BERTH_FAILPOINT_TRACE=FILE  append each place's name to FILE as it is passed
//	BERTH_FAILPOINT_STOP=NAME#N stop for ever at the N-th passing (from 1) of NAME,
//	                            after writing "NAME#N" to BERTH_FAILPOINT_SIGNAL
//	BERTH_FAILPOINT_SIGNAL=FILE a FIFO or file that the driver reads
var (
	mu    sync.Mutex
	seen  = map[string]int{}
	trace = openAppend(os.Getenv("BERTH_FAILPOINT_TRACE"))
	stop  = os.Getenv("BERTH_FAILPOINT_STOP")
	// root is kept because a place may be passed on a thread in another mount
	// namespace, where the driver's files have no path.
	root, _ = syscall.Open("/", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
)

func openAppend(path string) *os.File {
	if path == "" {
		return nil
	}
	dir := -100 // AT_FDCWD
	if root > 0 && path[0] == '/' {
		dir, path = root, "."+path
	}
	fd, err := syscall.Openat(dir, path, syscall.O_CREAT|syscall.O_APPEND|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		panic("failpoint: " + path + ": " + err.Error())
	}
	return os.NewFile(uintptr(fd), path)
}

// Hit marks a place; it may never return.
func Hit(name string) {
	mu.Lock()
	seen[name]++
	at := fmt.Sprintf("%s#%d", name, seen[name])
	if trace != nil {
		fmt.Fprintln(trace, at)
	}
	mu.Unlock()
	if at != stop {
		return
	}
	if f := openAppend(os.Getenv("BERTH_FAILPOINT_SIGNAL")); f != nil {
		fmt.Fprintln(f, at)
		f.Close()
	}
	select {}
}

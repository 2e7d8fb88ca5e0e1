// Bad is an OCI runtime that misbehaves in one way, chosen by an option of its
// handler (--bad=<subcommand>:<way>), and for all else is crun.
//
//	hang     never ends, whatever signal it gets
//	nothing  ends as if it had done it
//	garbage  prints megabytes that mean nothing, and fails
//	nonsense prints something that means nothing, and succeeds
//	crash    dies by a signal
//	silent   fails and says nothing
//	leave    does it, and leaves a process and files behind
//	elsewhere does it, and names a process of somebody else's
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

var subcommands = []string{"create", "start", "state", "delete", "kill", "exec", "update", "features"}

func main() {
	var args []string
	var at, way, root string
	for _, a := range os.Args[1:] {
		if v, ok := strings.CutPrefix(a, "--bad="); ok {
			at, way, _ = strings.Cut(v, ":")
			continue
		}
		if v, ok := strings.CutPrefix(a, "--root="); ok {
			root = v
		}
		args = append(args, a)
	}
	op := ""
	if i := slices.IndexFunc(args, func(a string) bool { return slices.Contains(subcommands, a) }); i >= 0 {
		op = args[i]
	}
	if op != at {
		way = ""
	}
	behave(way, root, args)
}

func behave(way, root string, args []string) {
	id := args[len(args)-1]
	switch way {
	case "hang":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		leave(id)
		for {
			time.Sleep(time.Hour)
		}
	case "nothing":
	case "garbage":
		for range 64 {
			os.Stdout.Write(bytes.Repeat([]byte("\x1b[31m{]"), 8<<10))
			os.Stderr.Write(bytes.Repeat([]byte("\xff\x00ga"), 8<<10))
		}
		os.Exit(1)
	case "nonsense":
		fmt.Println(`{"status": 17`)
	case "crash":
		signal.Reset()
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "silent":
		os.Exit(3)
	case "leave":
		code := run(args)
		leave(id)
		os.MkdirAll(filepath.Join(root, id, "junk"), 0o700)
		os.WriteFile("junk", []byte("in the bundle"), 0o600)
		os.Exit(code)
	case "elsewhere":
		code := run(args)
		if i := slices.Index(args, "--pid-file"); i >= 0 {
			os.WriteFile(args[i+1], []byte("1"), 0o600)
		}
		os.Exit(code)
	default:
		real(args)
	}
}

// leave starts a process that outlives us and bears the container's ID.
func leave(id string) {
	cmd := exec.Command("/bin/sh", "-c", "sleep 100000; : left-by-"+id)
	cmd.Start()
}

func crun() string {
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin"} {
		if p := filepath.Join(dir, "crun"); exec.Command(p, "--version").Run() == nil {
			return p
		}
	}
	os.Exit(127)
	return ""
}

func real(args []string) {
	p := crun()
	syscall.Exec(p, append([]string{p}, args...), os.Environ())
	os.Exit(126)
}

func run(args []string) int {
	cmd := exec.Command(crun(), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return 1
	}
	return 0
}

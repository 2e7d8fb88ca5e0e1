// Program is what the images of critest run that busybox cannot stand for. What
// it does depends on the name that it is called by:
//
//	pause          waits to be told to end, and reaps orphans
//	nnp            prints its effective user: the file is setuid root
//	nginx, httpd   answers every request with a page, on the port given (80)
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); name {
	case "pause":
		pause()
	case "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	default:
		err = serve(name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pause() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range told {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// serve leaves its process ID where nginx does. The last argument is the port;
// the others are there to be seen in the list of processes.
func serve(name string) error {
	port := "80"
	if _, err := strconv.Atoi(os.Args[len(os.Args)-1]); err == nil {
		port = os.Args[len(os.Args)-1]
	}
	if err := os.WriteFile("/var/run/"+name+".pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT)
	defer stop()
	s := &http.Server{Addr: ":" + port, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "<title>Welcome to %s!</title>\n", name)
	})}
	go func() { <-ctx.Done(); s.Close() }()
	fmt.Printf("%s: serving on :%s\n", name, port)
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Command workload is what the pods of the kubelet test run: it serves HTTP,
// plain TCP and the gRPC health service, says what it does on its standard
// output, and can be told to become unhealthy or to end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	web := flag.String("http", ":8080", "address of HTTP")
	rpc := flag.String("grpc", ":9090", "address of the gRPC health service")
	flag.Parse()
	if err := run(*web, *rpc); err != nil {
		fmt.Println("workload:", err)
		os.Exit(1)
	}
	fmt.Println("ended well")
}

func run(web, rpc string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	l, err := net.Listen("tcp", rpc)
	if err != nil {
		return err
	}
	checks := health.NewServer()
	g := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(g, checks)
	failed := make(chan error, 2)
	go func() { failed <- g.Serve(l) }()
	s := &http.Server{Addr: web, Handler: mux(), ReadHeaderTimeout: 10 * time.Second}
	go func() { failed <- s.ListenAndServe() }()
	fmt.Println("serving as", os.Getenv("HOSTNAME"))
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	g.Stop()
	late, cancelLate := context.WithTimeout(context.Background(), time.Second)
	defer cancelLate()
	if err := s.Shutdown(late); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func mux() *http.ServeMux {
	var ill atomic.Bool
	m := http.NewServeMux()
	m.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if ill.Load() {
			http.Error(w, "ill", http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "well")
	})
	m.HandleFunc("/fail", func(w http.ResponseWriter, _ *http.Request) { ill.Store(true); fmt.Fprintln(w, "ill from now on") })
	m.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil {
			code = 99
		}
		os.Exit(code)
	})
	m.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, os.Getenv("HOSTNAME"), os.Getenv("VERSION"))
	})
	return m
}

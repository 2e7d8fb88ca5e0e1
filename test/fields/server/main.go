// Server answers probes and hooks in tests. It serves HTTP on :8080, HTTPS on
// :8443, gRPC health on :9000 and UDP on :9999, writes one line for each request to its
// standard output, and is unhealthy while the file /tmp/unhealthy exists.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func unhealthy() bool {
	_, err := os.Stat("/tmp/unhealthy")
	return err == nil
}

func answer(w http.ResponseWriter, r *http.Request) {
	scheme := "HTTP"
	if r.TLS != nil {
		scheme = "HTTPS"
	}
	fmt.Printf("%s %s host=%s x-test=%s agent=%s\n", scheme, r.URL.Path, r.Host, r.Header.Get("X-Test"), r.UserAgent())
	if unhealthy() || r.URL.Path == "/fail" {
		http.Error(w, "unhealthy", http.StatusServiceUnavailable)
	}
}

type healthServer struct {
	health.UnimplementedHealthServer
}

func (healthServer) Check(_ context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	fmt.Printf("GRPC service=%s\n", r.Service)
	if r.Service != "" && r.Service != "known" {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	if unhealthy() {
		return &health.HealthCheckResponse{Status: health.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// receive writes what comes by UDP.
func receive(c net.PacketConn) error {
	b := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		fmt.Printf("UDP %s\n", b[:n])
	}
}

func main() {
	if len(os.Args) > 1 { // a delay before it listens, for startup probes
		d, err := time.ParseDuration(os.Args[1])
		if err != nil {
			log.Fatal(err)
		}
		time.Sleep(d)
	}
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		log.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", ":9999")
	if err != nil {
		log.Fatal(err)
	}
	g := grpc.NewServer()
	health.RegisterHealthServer(g, healthServer{})
	plain := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(answer)}
	secure := &http.Server{Addr: ":8443", Handler: plain.Handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate()}}}
	ended := make(chan error, 4)
	go func() { ended <- receive(packets) }()
	go func() { ended <- g.Serve(l) }()
	go func() { ended <- plain.ListenAndServe() }()
	go func() { ended <- secure.ListenAndServeTLS("", "") }()
	log.Fatal(<-ended)
}

package probes

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// probeOf reads the probe of a pod on the loopback whose port "web" is port.
func probeOf(t testing.TB, port int, source string) *Target {
	t.Helper()
	var probe v1.Probe
	if err := yaml.UnmarshalStrict([]byte(source), &probe); err != nil {
		t.Fatal(err)
	}
	return &Target{Probe: &probe, PodIP: "127.0.0.1", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}
}

func portOf(t testing.TB, address string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	return n
}

func show(o outcome) string {
	return [...]string{"success", "warning", "failure", "errored"}[o.state] + " " + o.message
}

func prober() *Prober {
	return New(Config{Logger: slog.New(slog.DiscardHandler)})
}

func TestHTTP(t *testing.T) {
	var seen *http.Request
	hang := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { seen = r; fmt.Fprint(w, "fine") })
	mux.HandleFunc("/code/", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/code/"))
		w.WriteHeader(n)
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok?from=here", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://example.com/")
		w.WriteHeader(http.StatusFound)
		fmt.Fprint(w, "moved")
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/code/500", http.StatusFound) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, io.LimitReader(zeros{}, 50<<20))
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-hang })
	mux.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "fine")
	})
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	defer close(hang)
	port, tlsPort := portOf(t, plain.Listener.Addr().String()), portOf(t, secure.Listener.Addr().String())
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	for _, tc := range []struct{ name, probe, want string }{
		{"ok", "httpGet: {path: /ok, port: web}", "success "},
		{"redirect on the host", "httpGet: {path: /here, port: web}", "success "},
		{"redirect away", "httpGet: {path: /away, port: web}", "warning Probe terminated redirects, Response body: moved"},
		{"redirect without end", "httpGet: {path: /loop, port: web}", `failure Get "/loop": stopped after 10 redirects`},
		{"redirect to an error", "httpGet: {path: /broken, port: web}", "failure HTTP probe failed with statuscode: 500"},
		{"204", "httpGet: {path: /code/204, port: web}", "success "},
		{"400", "httpGet: {path: /code/400, port: web}", "failure HTTP probe failed with statuscode: 400"},
		{"503", "httpGet: {path: /code/503, port: web}", "failure HTTP probe failed with statuscode: 503"},
		{"304 without location", "httpGet: {path: /code/304, port: web}", "warning Probe terminated redirects, Response body: "},
		{"endless body", "httpGet: {path: /big, port: web}", "success "},
		{"hints first", "httpGet: {path: /early, port: web}", "success "},
		{"silence", "{timeoutSeconds: 1, httpGet: {path: /hang, port: web}}",
			`failure Get "` + base + `/hang": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`},
		{"https", fmt.Sprintf("httpGet: {path: /ok, port: %d, scheme: HTTPS}", tlsPort), "success "},
		{"http to https", fmt.Sprintf("httpGet: {path: /ok, port: %d}", tlsPort), "failure HTTP probe failed with statuscode: 400"},
		{"nobody listens", "httpGet: {path: /, port: 1}", `failure Get "http://127.0.0.1:1/": dial tcp 127.0.0.1:1: connect: connection refused`},
		{"unknown port", "httpGet: {path: /, port: nosuch}", `errored port "nosuch" of the probe is neither`},
		{"other host", fmt.Sprintf("httpGet: {path: /ok, host: localhost, port: %d}", port), "success "},
		{"odd path", "httpGet: {path: 'ok?a=%zz', port: web}", "success "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, target := &dialing{}, probeOf(t, port, tc.probe)
			for range 2 { // the second uses what the first prepared
				if got := show(prober().carryOut(t.Context(), d, target)); !strings.HasPrefix(got, tc.want) || tc.want == "success " && got != tc.want {
					t.Errorf("%s, want %s", got, tc.want)
				}
			}
		})
	}
	t.Run("headers", func(t *testing.T) {
		for probe, want := range map[string]string{
			"httpGet: {path: /ok, port: web}": "kube-probe/1.36|*/*||127.0.0.1:" + strconv.Itoa(port),
			"httpGet: {path: /ok, port: web, httpHeaders: [{name: host, value: shop.example}, {name: user-agent, value: me}, {name: X-A, value: a}, {name: x-a, value: b}, {name: Accept, value: ''}]}": "me||a,b|shop.example",
			"httpGet: {path: /here, port: web, httpHeaders: [{name: X-A, value: a}]}": "kube-probe/1.36|*/*|a|127.0.0.1:" + strconv.Itoa(port),
		} {
			seen = nil
			prober().carryOut(t.Context(), &dialing{}, probeOf(t, port, probe))
			if seen == nil {
				t.Fatal("no request came")
			}
			got := strings.Join([]string{seen.Header.Get("User-Agent"), seen.Header.Get("Accept"), strings.Join(seen.Header["X-A"], ","), seen.Host}, "|")
			if got != want || seen.Header.Get("Accept-Encoding") != "" || !seen.Close {
				t.Errorf("%s\nsent %s (encoding %q, close %v), want %s", probe, got, seen.Header.Get("Accept-Encoding"), seen.Close, want)
			}
		}
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// rawServer answers every connection with the given bytes, then closes it.
func rawServer(t *testing.T, answer string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, answer)
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return portOf(t, l.Addr().String())
}

func TestHTTPFromBadServers(t *testing.T) {
	for name, tc := range map[string]struct{ answer, want string }{
		"nothing":          {"", "failure Get "},
		"garbage":          {"SSH-2.0-OpenSSH_9\r\n", "failure Get "},
		"half a head":      {"HTTP/1.1 200 OK\r\nContent-", "failure Get "},
		"endless head":     {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 4000)+"\r\n", 300), "failure Get "},
		"endless hints":    {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), "failure Get "},
		"short body":       {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "success "},
		"chunks":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "success "},
		"protocol of 1991": {"HTTP/1.0 200 OK\r\n\r\nhi", "success "},
	} {
		t.Run(name, func(t *testing.T) {
			target := probeOf(t, rawServer(t, tc.answer), "httpGet: {path: /, port: web}")
			if got := show(prober().carryOut(t.Context(), &dialing{}, target)); !strings.HasPrefix(got, tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestTCP(t *testing.T) {
	port := rawServer(t, "")
	for source, want := range map[string]string{
		"tcpSocket: {port: web}":                                    "success ",
		fmt.Sprintf("tcpSocket: {port: %d, host: localhost}", port): "success ",
		"tcpSocket: {port: 1}":                                      "failure dial tcp 127.0.0.1:1: connect: connection refused",
		"tcpSocket: {port: nosuch}":                                 `errored port "nosuch" of the probe is neither a number from 1 to 65535 nor the name of one of the container's ports`,
	} {
		if got := show(prober().carryOut(t.Context(), &dialing{}, probeOf(t, port, source))); got != want {
			t.Errorf("%s: %s, want %s", source, got, want)
		}
	}
}

func TestGRPC(t *testing.T) {
	serve := func(register func(*grpc.Server)) int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-ended })
		return portOf(t, l.Addr().String())
	}
	checks := health.NewServer()
	checks.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	healthy := serve(func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, checks) })
	none := serve(func(*grpc.Server) {})
	garbage := rawServer(t, "HTTP/1.1 400 Bad Request\r\n\r\n")
	for _, tc := range []struct{ name, probe, want string }{
		{"serving", fmt.Sprintf("grpc: {port: %d}", healthy), "success "},
		{"not serving", fmt.Sprintf("grpc: {port: %d, service: down}", healthy), `failure service unhealthy (responded with "NOT_SERVING")`},
		{"unknown", fmt.Sprintf("grpc: {port: %d, service: nosuch}", healthy), `failure error: health rpc probe failed: rpc error: code = NotFound`},
		{"no health service", fmt.Sprintf("grpc: {port: %d}", none), `failure error: this server does not implement the grpc health protocol (grpc.health.v1.Health)`},
		{"nobody listens", "grpc: {port: 1}", `failure error: failed to connect service at "127.0.0.1:1": dial tcp 127.0.0.1:1: connect: connection refused`},
		{"not gRPC", fmt.Sprintf("grpc: {port: %d}", garbage), `failure `},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(prober().carryOut(t.Context(), &dialing{}, probeOf(t, 0, tc.probe))); !strings.HasPrefix(got, tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// TestProbersWork drives real probes through the schedule.
func TestProbersWork(t *testing.T) {
	var up atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	u, _ := url.Parse(server.URL)
	type report struct {
		ok      bool
		message string
	}
	reports, failures := make(chan report, 10), make(chan string, 100)
	p := New(Config{
		Report: func(_, _ string, _ Kind, ok bool, m string) { reports <- report{ok, m} },
		Failed: func(_ string, _ *Target, m string) { failures <- m },
		Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	p.Set("u", []Target{{ContainerID: "c", Kind: Readiness, PodIP: u.Hostname(), StartedAt: time.Now(), Probe: &v1.Probe{
		PeriodSeconds: 1, ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromInt(portOf(t, u.Host))}}}}})
	if m := <-failures; m != "Readiness probe failed: HTTP probe failed with statuscode: 503" {
		t.Errorf("event %q", m)
	}
	up.Store(true)
	p.Trigger("u")
	if r := <-reports; !r.ok {
		t.Errorf("report %+v", r)
	}
	cancel()
	<-ended
}

// BenchmarkHTTPProbe prints what one probe costs: time, CPU time, allocations.
func BenchmarkHTTPProbe(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer server.Close()
	target := probeOf(b, portOf(b, server.Listener.Addr().String()), "httpGet: {path: /, port: web}")
	p, d := prober(), &dialing{}
	b.ReportAllocs()
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	for b.Loop() {
		if got := p.carryOut(b.Context(), d, target); got.state != success {
			b.Fatal(show(got))
		}
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(b.N)/1e3, "cpu-us/op(with-server)")
}

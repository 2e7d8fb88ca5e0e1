package probes

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// userAgent is the kubelet's, of the Kubernetes line whose behaviour this is.
const userAgent = "kube-probe/1.36"

// maxAnswer bounds head and body of an answer together.
const maxAnswer = 1 << 20

// httpTemplate is the request a target's probes send.
type httpTemplate struct {
	request *http.Request
}

// httpProbe sends a GET. Answers from 200 to 399 are successes; redirects are
// followed on the same host, and one to another host is a warning.
func httpProbe(ctx context.Context, d *dialing, t *Target) outcome {
	if d.http == nil {
		request, err := newRequest(t)
		if err != nil {
			return erred(err)
		}
		d.http = &httpTemplate{request: request}
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	answer, err := client.Do(d.http.request.WithContext(ctx))
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return failed("%v (Client.Timeout exceeded while awaiting headers)", err)
		}
		return failed("%v", err)
	}
	defer answer.Body.Close()
	buffer := bodies.Get().(*[maxOutput]byte)
	defer bodies.Put(buffer)
	n, err := io.ReadFull(answer.Body, buffer[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return erred(fmt.Errorf("read the body: %w", err))
	}
	switch code := answer.StatusCode; {
	case code < 200 || code >= 400:
		return failed("HTTP probe failed with statuscode: %d", code)
	case code >= 300:
		return outcome{warning, clip("Probe terminated redirects, Response body: " + string(buffer[:n]))}
	}
	return outcome{}
}

// newRequest builds the request of t's probe with the kubelet's headers.
func newRequest(t *Target) (*http.Request, error) {
	get := t.Probe.HTTPGet
	port, err := resolvePort(get.Port, t.Ports)
	if err != nil {
		return nil, err
	}
	scheme := strings.ToLower(string(get.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(get.Path)
	if err != nil { // not a path one can parse: send it as it is
		u = &url.URL{Path: get.Path}
	}
	u.Scheme, u.Host = scheme, address(get.Host, t.PodIP, port)
	request, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range get.HTTPHeaders {
		request.Header.Add(h.Name, h.Value)
	}
	request.Host = request.Header.Get("Host")
	if _, given := request.Header["User-Agent"]; !given {
		request.Header.Set("User-Agent", userAgent)
	}
	if accept, given := request.Header["Accept"]; !given {
		request.Header.Set("Accept", "*/*")
	} else if accept[0] == "" {
		request.Header.Del("Accept")
	}
	request.Close = true
	return request, nil
}

// client follows redirects like net/http but makes every request on a connection
// of its own. The transport of net/http would start two goroutines and allocate
// two buffers for each probe, and offers nothing a probe needs.
var client = &http.Client{
	Transport: oneShot{},
	CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		next.Close = true
		return nil
	},
}

var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}
	bodies  = sync.Pool{New: func() any { return new([maxOutput]byte) }}
)

// unverified is for https: a probe asks whether the container answers, not who it is.
var unverified = &tls.Config{InsecureSkipVerify: true}

// oneShot sends a request over HTTP/1.1 on a fresh connection, without proxy,
// compression or keep-alive.
type oneShot struct{}

// RoundTrip implements http.RoundTripper. The body of the answer owns the connection.
func (oneShot) RoundTrip(request *http.Request) (*http.Response, error) {
	ctx := request.Context()
	conn, err := connect(ctx, request.URL)
	if err != nil {
		return nil, inTime(ctx, err)
	}
	x := &exchange{conn: conn, stop: context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })}
	answer, err := x.do(request)
	if err != nil {
		x.end()
		return nil, inTime(ctx, err)
	}
	return answer, nil
}

func connect(ctx context.Context, u *url.URL) (net.Conn, error) {
	target := u.Host
	if u.Port() == "" {
		target = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil || u.Scheme != "https" {
		return conn, err
	}
	config := unverified.Clone()
	config.ServerName = u.Hostname()
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error tells
		return nil, err
	}
	return secure, nil
}

// inTime says that the deadline passed where that is what made err.
func inTime(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// exchange is one request and its answer on a connection.
type exchange struct {
	conn   net.Conn
	stop   func() bool // takes the context's hand off the connection
	reader *bufio.Reader
	body   io.ReadCloser
}

func (x *exchange) do(request *http.Request) (*http.Response, error) {
	if err := request.Write(x.conn); err != nil {
		return nil, err
	}
	x.reader = readers.Get().(*bufio.Reader)
	x.reader.Reset(io.LimitReader(x.conn, maxAnswer))
	for range 5 { // informational answers come before the real one
		answer, err := http.ReadResponse(x.reader, request)
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = io.EOF
			}
			return nil, err
		}
		if answer.StatusCode >= 200 || answer.StatusCode == http.StatusSwitchingProtocols {
			x.body = answer.Body
			answer.Body = x
			return answer, nil
		}
	}
	return nil, errors.New("too many informational responses")
}

// Read reads the body.
func (x *exchange) Read(b []byte) (int, error) { return x.body.Read(b) }

// Close ends the exchange; what was not read is not waited for.
func (x *exchange) Close() error { return x.end() }

func (x *exchange) end() error {
	if x.conn == nil {
		return nil
	}
	x.stop()
	err := x.conn.Close()
	x.conn = nil
	if x.reader != nil {
		x.reader.Reset(nil)
		readers.Put(x.reader)
		x.reader, x.body = nil, http.NoBody
	}
	return err
}

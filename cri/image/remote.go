package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
)

const (
	// maxTries bounds the requests for one thing at one host, maxChallenges how
	// often one of them may ask for credentials, maxRedirects where it may lead.
	maxTries      = 5
	maxChallenges = 2
	maxRedirects  = 10
	// maxWait bounds how long in all a registry's Retry-After is obeyed for one request.
	maxWait = 2 * time.Minute
	// mirrorPatience bounds the wait for the first byte where another host is left.
	mirrorPatience = 10 * time.Second
)

// remote is one repository: at its registry, or at the mirrors before it.
type remote struct {
	hosts []docker.RegistryHost // in the order in which they are asked
	named reference.Named
	stall time.Duration
	log   *slog.Logger
	// certsDir is where hosts.toml is looked for.
	certsDir string
}

func (s *Store) openRemote(ctx context.Context, named reference.Named, auth Auth) (*remote, error) {
	hosts, err := s.registryHosts(ctx, named, auth)
	if err != nil {
		return nil, err
	}
	list, err := hosts(reference.Domain(named))
	if err != nil {
		return nil, codef(CodeHost, "configuration of registry %s below %s: %w", reference.Domain(named), s.cfg.CertsDir, err)
	}
	return &remote{hosts: distinct(list), named: named, stall: s.cfg.StallTimeout, log: s.log, certsDir: s.cfg.CertsDir}, nil
}

// distinct drops the registry itself from the end where hosts.toml names it among
// its mirrors, with settings of its own.
func distinct(list []docker.RegistryHost) []docker.RegistryHost {
	for i, a := range list {
		for _, b := range list[i+1:] {
			if a.Host == b.Host && a.Scheme == b.Scheme && a.Path == b.Path {
				return list[:len(list)-1]
			}
		}
	}
	return list
}

// ask is one thing asked of a host.
type ask struct {
	method string
	path   string // "manifests/<tag>", "blobs/<digest>"
	accept string
	offset int64 // where the answer is to begin
}

// each asks the hosts that can do what is wanted one after the other, until one
// answers. Failing, it gives the last host's error, which is the registry's own,
// with what its mirrors said.
func (r *remote) each(ctx context.Context, can docker.HostCapabilities, skip map[string]bool, a ask) (*http.Response, string, error) {
	ctx = docker.WithScope(ctx, "repository:"+reference.Path(r.named)+":pull")
	var hosts []docker.RegistryHost
	for _, h := range r.hosts {
		if h.Capabilities.Has(can) && !skip[h.Host] {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return nil, "", codef(CodeUnavailable, "no host is left that could be asked")
	}
	var said []string
	for i, h := range hosts {
		last := i == len(hosts)-1
		resp, err := r.try(ctx, h, last, a)
		if err == nil {
			return resp, h.Host, nil
		}
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		if last && len(said) > 0 {
			return nil, "", fmt.Errorf("%w (before that, %s)", err, strings.Join(said, "; "))
		} else if last {
			return nil, "", err
		}
		r.log.Info("a mirror did not answer, asking the next host", "mirror", h.Host, "image", r.named.String(), "err", err)
		said = append(said, fmt.Sprintf("mirror %s: %v", h.Host, err))
	}
	return nil, "", errors.New("unreachable")
}

// try asks one host, as often as makes sense: the last one again after an answer
// that is said to be of this moment only.
func (r *remote) try(ctx context.Context, h docker.RegistryHost, last bool, a ask) (*http.Response, error) {
	var challenges []*http.Response
	waited, again := time.Duration(0), time.Second/4
	for n := 1; ; n++ {
		resp, err := r.once(ctx, h, last, a)
		if err == nil && resp.StatusCode < 300 {
			return resp, nil
		}
		wait := again
		switch {
		case ctx.Err() != nil:
			drain(resp)
			return nil, context.Cause(ctx)
		case err != nil:
			if !last || n >= 2 || !transient(err) {
				return nil, err
			}
		case resp.StatusCode == http.StatusUnauthorized && len(challenges) < maxChallenges:
			challenges = append(challenges, resp)
			drain(resp)
			if err := r.answer(ctx, h, challenges); err != nil {
				return nil, err
			}
			continue
		default:
			err = statusOf(resp)
			if !last || n >= maxTries || !err.(*statusError).passing() {
				return nil, err
			}
			if asked, ok := retryAfter(resp, time.Now()); ok {
				wait = asked
			}
			if waited += wait; waited > maxWait {
				return nil, fmt.Errorf("%w: it asks to wait %v, which is too long", err, wait.Round(time.Second))
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		again *= 2
	}
}

// answer prepares credentials for what a host asked for. Where a host has led to
// another one, that one gets none.
func (r *remote) answer(ctx context.Context, h docker.RegistryHost, challenges []*http.Response) error {
	last := challenges[len(challenges)-1]
	if at := last.Request.URL.Host; at != h.Host {
		return codef(CodeUnauthorized, "%s leads to %s, which asks for credentials: it is given none", h.Host, at)
	}
	if h.Authorizer == nil {
		return statusOf(last)
	}
	if err := h.Authorizer.AddResponses(ctx, challenges); err != nil {
		return codef(CodeUnauthorized, "%w: %w", statusOf(last), hideURL(err))
	}
	return nil
}

// once sends one request. The answer's first byte has to come within the stall
// time, and each part of its body.
func (r *remote) once(ctx context.Context, h docker.RegistryHost, last bool, a ask) (*http.Response, error) {
	patience := r.stall
	if !last {
		patience = min(patience, mirrorPatience)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(patience, func() { cancel(stalled(h.Host, patience)) })
	req, err := r.request(ctx, h, a)
	if err == nil && h.Authorizer != nil {
		err = h.Authorizer.Authorize(ctx, req)
	}
	var resp *http.Response
	if err == nil {
		resp, err = r.client(ctx, h).Do(req)
	}
	if !timer.Stop() && err == nil {
		resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		return nil, r.untrusted(h.Host, hideURL(err))
	}
	resp.Body = &watchedBody{ctx: ctx, body: resp.Body, cancel: cancel, stall: r.stall, host: h.Host}
	return resp, nil
}

// untrusted says what to do about a host that cannot be spoken to by TLS.
func (r *remote) untrusted(host string, err error) error {
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert *net.OpError
	file := filepath.Join(r.certsDir, reference.Domain(r.named), "hosts.toml")
	switch {
	case errors.As(err, &cert):
		return codef(CodeUnavailable, "%w: if it is to be trusted, name its CA in %s", err, file)
	case errors.As(err, &alert) && alert.Op == "remote error":
		return codef(CodeUnavailable, "%w: if %s wants a client certificate, name one in %s", err, host, file)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return codef(CodeUnavailable, "%w: if %s is to be spoken to without TLS, say so in %s", err, host, file)
	}
	return err
}

func (r *remote) request(ctx context.Context, h docker.RegistryHost, a ask) (*http.Request, error) {
	u := url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join("/", h.Path, reference.Path(r.named), a.path)}
	if d := reference.Domain(r.named); h.Host != d && h.Host != registryHost(d) {
		u.RawQuery = url.Values{"ns": {d}}.Encode() // what a mirror is asked to mirror
	}
	req, err := http.NewRequestWithContext(ctx, a.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range h.Header {
		req.Header[k] = append([]string(nil), v...)
	}
	req.Header.Set("User-Agent", "berth")
	req.Header.Set("Accept", a.accept)
	// Digests are of what is stored: nothing is to be packed on the way, and no
	// decoder runs on bytes that no digest vouches for.
	req.Header.Set("Accept-Encoding", "identity")
	if a.offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", a.offset))
	}
	return req, nil
}

// client follows redirects, but takes nothing along that is for the host alone.
func (r *remote) client(ctx context.Context, h docker.RegistryHost) *http.Client {
	c := http.Client{}
	if h.Client != nil {
		c = *h.Client
	}
	c.Timeout = 0 // the body may take long
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("it leads on more than %d times", maxRedirects)
		}
		from := via[len(via)-1].URL
		if from.Scheme == "https" && req.URL.Scheme != "https" {
			return codef(CodeUnauthorized, "it leads from https to %s://%s, which is refused", req.URL.Scheme, req.URL.Host)
		}
		if req.URL.Host == h.Host && req.URL.Scheme == h.Scheme {
			if h.Authorizer == nil {
				return nil
			}
			return h.Authorizer.Authorize(ctx, req)
		}
		for _, k := range []string{"Authorization", "Cookie", "Proxy-Authorization", "Referer"} {
			req.Header.Del(k)
		}
		for k := range h.Header {
			req.Header.Del(k)
		}
		return nil
	}
	return &c
}

// watchedBody ends a body that stops giving data.
type watchedBody struct {
	ctx    context.Context
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	stall  time.Duration
	host   string
}

// Read reads, and fails after the stall time.
func (w *watchedBody) Read(p []byte) (int, error) {
	timer := time.AfterFunc(w.stall, func() { w.cancel(stalled(w.host, w.stall)) })
	n, err := w.body.Read(p)
	timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}

// Close ends the request.
func (w *watchedBody) Close() error {
	w.cancel(nil)
	return w.body.Close()
}

// errStalled is the cause of a request's end when nothing moved.
var errStalled = errors.New("registry stalled")

func stalled(host string, after time.Duration) error {
	return codef(CodeStalled, "no byte came from %s for %v: %w", host, after, errStalled)
}

// drain makes a connection usable again.
func drain(resp *http.Response) {
	if resp != nil {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // the connection is closed if more comes
		resp.Body.Close()
	}
}

// transient tells whether asking again may help though no answer came.
func transient(err error) bool {
	var ue *url.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ue) && ue.Timeout()
}

// hideURL takes the URL, which may carry a signature, out of a client's error.
func hideURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		u, perr := url.Parse(ue.URL)
		if perr != nil {
			return ue.Err
		}
		return fmt.Errorf("%s %s://%s: %w", ue.Op, u.Scheme, u.Host, ue.Err)
	}
	return err
}

// retryAfter reads how long a host asks to wait.
func retryAfter(resp *http.Response, now time.Time) (time.Duration, bool) {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseInt(v, 10, 32); err == nil && n >= 0 {
		return time.Duration(n) * time.Second, true
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, at.Sub(now)), true
	}
	return 0, false
}

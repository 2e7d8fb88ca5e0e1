package image

import (
	"context"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/distribution/reference"
)

func defaultCertsDir() string {
	for _, dir := range []string{"/etc/berth/certs.d", "/etc/containerd/certs.d"} {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return dir
		}
	}
	return "/etc/berth/certs.d"
}

// registryHosts tells where the images of a registry are fetched: the hosts of
// its hosts.toml, or itself. Plain http is spoken where hosts.toml says so, and
// with loopback.
func (s *Store) registryHosts(ctx context.Context, named reference.Named, auth Auth) (docker.RegistryHosts, error) {
	creds, err := auth.credentials()
	if err != nil {
		return nil, err
	}
	opts := config.HostOptions{
		HostDir:     config.HostDirFromRoot(s.cfg.CertsDir),
		Credentials: creds,
	}
	if auth.RegistryToken != "" {
		host := registryHost(reference.Domain(named))
		opts.UpdateClient = func(c *http.Client) error {
			c.Transport = &bearer{next: c.Transport, host: host, token: auth.RegistryToken}
			return nil
		}
	}
	return config.ConfigureHosts(ctx, opts), nil
}

// registryHost is the host that serves a registry's API.
func registryHost(domain string) string {
	if domain == "docker.io" || domain == "index.docker.io" {
		return "registry-1.docker.io"
	}
	return domain
}

// credentials gives the function the resolver asks for each host: user name
// and secret, where an empty name means that the secret is an identity token.
func (a Auth) credentials() (func(string) (string, string, error), error) {
	user, secret := a.Username, a.Password
	switch {
	case a.IdentityToken != "":
		user, secret = "", a.IdentityToken
	case user == "" && a.Auth != "":
		b, err := base64.StdEncoding.DecodeString(a.Auth)
		// The reason is left out: it could quote the secret.
		u, p, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return nil, codef(CodeUnauthorized, "the credentials' auth is not base64 of user:password")
		}
		user, secret = u, strings.TrimRight(p, "\x00")
	}
	only := a.ServerAddress
	if u, err := url.Parse(only); err == nil && u.Host != "" {
		only = u.Host
	} else {
		only, _, _ = strings.Cut(only, "/")
	}
	return func(host string) (string, string, error) {
		if only != "" && registryHost(only) != registryHost(host) {
			return "", "", nil
		}
		return user, secret, nil
	}, nil
}

// bearer sends a ready-made token to one registry, over TLS or loopback only.
type bearer struct {
	next        http.RoundTripper
	host, token string
}

// RoundTrip adds the token where nothing else was decided.
func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == b.host && r.Header.Get("Authorization") == "" && (r.URL.Scheme == "https" || isLoopback(r.URL.Hostname())) {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

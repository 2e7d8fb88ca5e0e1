package source

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
)

// Stdin is the path that stands for standard input in Config.Paths.
const Stdin = "-"

// Config is what New needs.
type Config struct {
	// Node is the name of this node: it becomes spec.nodeName, and part of the pods' UIDs.
	Node string
	// Root is the agent's root directory; Root/run and Root/source are the Set's own.
	Root string
	// Paths are manifest directories and single files, watched from Run on; "-" is Stdin.
	// What does not exist yet is empty until it appears.
	Paths []string
	// Stdin is read once, to its end, if Paths holds "-".
	Stdin io.Reader
	// URLs are fetched again and again.
	URLs []URL
	// Deliver takes the full snapshot of one source: at its first reading, also
	// when that gave nothing (a source that is not configured is delivered
	// empty), then at each change. It is called by one goroutine, which waits
	// for it, and gets pods sorted by full name. It must not keep the slice's
	// array to write to; the pods in it are immutable.
	Deliver func(source pod.Source, pods []pod.Desired)
	// Changed, if set, takes all problems whenever they change, sorted. Called as Deliver is.
	Changed func([]Problem)
	Logger  *slog.Logger
	// Client fetches URLs; nil: one with a timeout of 10 s and the proxy of the environment.
	Client *http.Client
	// Period is the time between two fetches of a URL, varied by a tenth; 0: 20 s.
	Period time.Duration
}

// URL is a manifest on a web server.
type URL struct {
	Address string
	// Header is sent with each request, for example for authorization. It is never logged.
	Header http.Header
}

const (
	defaultPeriod = 20 * time.Second
	fetchTimeout  = 10 * time.Second
)

func (c *Config) complete() error {
	if c.Node == "" || c.Root == "" || c.Deliver == nil || c.Logger == nil {
		return errors.New("source: Config needs Node, Root, Deliver and Logger")
	}
	seen := map[string]bool{}
	for i, p := range c.Paths {
		if p == Stdin {
			if c.Stdin == nil {
				return errors.New("source: the path - needs Stdin")
			}
		} else if abs, err := filepath.Abs(p); err != nil {
			return fmt.Errorf("source: manifest path %s: %w", p, err)
		} else {
			c.Paths[i] = abs
		}
		if seen[c.Paths[i]] {
			return fmt.Errorf("source: the manifest path %s is given twice", p)
		}
		seen[c.Paths[i]] = true
	}
	for _, u := range c.URLs {
		parsed, err := url.Parse(u.Address)
		if err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
			return fmt.Errorf("source: the manifest URL %q is not of the form http(s)://host/path", redact(u.Address))
		}
		if seen[u.Address] {
			return fmt.Errorf("source: the manifest URL %s is given twice", redact(u.Address))
		}
		seen[u.Address] = true
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: fetchTimeout}
	}
	if c.Period == 0 {
		c.Period = defaultPeriod
	}
	return nil
}

// redact takes user names, passwords and queries, where tokens are passed, out of an address.
func redact(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "(unreadable)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return strings.TrimSuffix(u.String(), "?")
}

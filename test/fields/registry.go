package fields

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/registry"
)

// lasting is a test whose belongings last as long as another, longer one.
type lasting struct {
	testing.TB
	home testing.TB
}

// Cleanup has f called at the end of the longer test.
func (l lasting) Cleanup(f func()) { l.home.Cleanup(f) }

// TempDir is removed at the end of the longer test.
func (l lasting) TempDir() string { return l.home.TempDir() }

// startRegistry starts a registry that serves private:1 to one user.
func (r *running) startRegistry() (string, error) {
	user, password, _ := strings.Cut(r.step.Args, " ")
	if r.skipped != nil {
		*r.skipped = "docker-registry is not installed" // if Start skips
	}
	r.registry = registry.Start(lasting{r.t, r.home})
	spec, err := image.BusyboxSpec()
	if err != nil {
		return "", err
	}
	r.registry.Push(r.t, "private", "1", spec)
	if user != "" {
		r.registry.Private(user, password)
	}
	return "", nil
}

// faults are the ways in which a registry can fail.
var faults = map[string]http.HandlerFunc{
	"500": func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "database is down", http.StatusInternalServerError)
	},
	"429": func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit reached"}]}`, http.StatusTooManyRequests)
	},
	"hang": func(_ http.ResponseWriter, q *http.Request) { <-q.Context().Done() },
	"garbage": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write([]byte("{not json")) // the client may be gone
	},
	"html": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<html>Please log in to the hotel's network</html>")) // as above
	},
}

// fault makes the case's registry fail.
func (r *running) fault() (string, error) {
	if r.step.Args == "corrupt" {
		r.registry.Corrupt()
		return "", nil
	}
	f, ok := faults[r.step.Args]
	if !ok {
		return "", fmt.Errorf("no fault %q", r.step.Args)
	}
	r.registry.Fault(f)
	return "", nil
}

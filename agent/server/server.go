package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/berthd/berth/agent/pod"
)

// Config is what a Server answers from. Streams, Logs, Images and Audit may be
// nil where the runtime cannot do them; everything else is required.
type Config struct {
	Pods    Pods
	Events  Events
	Sources Sources
	Logs    Logs
	Streams Streams
	Images  Images
	// ImportFolder tells what became of the files in the import folder; nil where
	// there is none.
	ImportFolder func() []ImportedFile
	// Terminate asks for the end of a pod; it says whether there is one.
	Terminate func(uid pod.UID, t pod.Termination) bool
	// Amend changes running pods; either of its functions may be nil.
	Amend Amend
	// Audit lists what no record accounts for.
	Audit   func(ctx context.Context) ([]Leak, error)
	Version func() Version
	// Listening, unless nil, is called once the socket takes connections; it must not block.
	Listening func()
	Log       *slog.Logger
}

// Server answers the agent's API.
type Server struct {
	config  Config
	handler http.Handler
	// requests in flight, hijacked connections among them.
	requests sync.WaitGroup
}

// New returns a Server that does not serve yet.
func New(c Config) *Server {
	s := &Server{config: c}
	mux := http.NewServeMux()
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request){
		"GET /healthz":                   s.healthz,
		"GET /version":                   s.version,
		"GET /pods":                      s.listPods,
		"GET /berth/v1/pods/{ns}/{pod}":  s.describePod,
		"GET /berth/v1/watch":            s.watchPods,
		"GET /berth/v1/events":           s.listEvents,
		"GET /berth/v1/why/{ns}/{pod}":   s.why,
		"POST /berth/v1/apply":           s.apply,
		"POST /berth/v1/stop/{ns}/{pod}": s.stop,
		"GET /berth/v1/problems":         s.problems,

		"POST /berth/v1/pods/{ns}/{pod}/ephemeralcontainers": s.addEphemeral,
		"PUT /berth/v1/pods/{ns}/{pod}/conditions":           s.setCondition,
		"PUT /berth/v1/pods/{ns}/{pod}/resize":               s.resize,

		"GET /berth/v1/images":              s.listImages,
		"POST /berth/v1/images/pull":        s.pullImage,
		"POST /berth/v1/images/import":      s.importImages,
		"POST /berth/v1/images/verify":      s.verifyImages,
		"DELETE /berth/v1/images":           s.removeImage,
		"GET /berth/v1/audit":               s.audit,
		"GET /containerLogs/{ns}/{pod}/{c}": s.logs,
		"GET /exec/{ns}/{pod}/{c}":          s.exec,
		"POST /exec/{ns}/{pod}/{c}":         s.exec,
		"GET /attach/{ns}/{pod}/{c}":        s.attach,
		"POST /attach/{ns}/{pod}/{c}":       s.attach,
		"GET /portForward/{ns}/{pod}":       s.portForward,
		"POST /portForward/{ns}/{pod}":      s.portForward,
		"/": func(w http.ResponseWriter, r *http.Request) {
			s.fail(w, refuse(http.StatusNotFound, "the agent has no %s %s; is the command line of another version than the agent?", r.Method, r.URL.Path))
		},
	} {
		mux.HandleFunc(pattern, f)
	}
	s.handler = s.guarded(mux)
	return s
}

// Handler answers requests without any check of who asks.
func (s *Server) Handler() http.Handler { return s.handler }

// guarded counts requests, and keeps a panic in one of them from the agent.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		defer s.requests.Done()
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					s.config.Log.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p))
				}
				panic(http.ErrAbortHandler) // the client sees a broken connection, not half an answer
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// endingKey holds, in a request's context, the one that ends when the server does.
type endingKey struct{}

// stream is the context of a request that lasts: it ends with the client or as
// soon as the server is asked to end, which short requests outlive.
func stream(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	ending, ok := ctx.Value(endingKey{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(ending, cancel)
	return ctx, func() { stop(); cancel() }
}

// Limits of a request.
const (
	headerTime   = 10 * time.Second // to send a request's header
	bodyTime     = time.Minute      // to send a bounded body
	writeTime    = 30 * time.Second // for the client to take one piece of a stream
	endingTime   = 5 * time.Second  // for requests to finish when the agent ends
	maxApplyBody = 10 << 20
	maxAuthBody  = 64 << 10
)

package stream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime runs what clients ask for; *container.Store is one.
type Runtime interface {
	// Exec runs args with the client's streams until it ends or ctx does.
	Exec(ctx context.Context, containerID string, args []string, io container.Streams) (int32, error)
	// Attach connects the client to the container's own streams.
	Attach(ctx context.Context, containerID string, io container.Streams) error
}

// Sandboxes knows the network namespaces of sandboxes.
type Sandboxes interface {
	// NetworkNamespace opens a sandbox's network namespace; nil without error
	// means the host's. The caller closes it.
	NetworkNamespace(ctx context.Context, sandboxID string) (*os.File, error)
}

// Config is what a Server needs.
type Config struct {
	Runtime   Runtime
	Sandboxes Sandboxes
	// IdleTimeout ends a connection on which nothing happens; 0 is four hours.
	IdleTimeout time.Duration
	// Address is where CRI clients are served; empty is a free port of 127.0.0.1.
	Address string
	Log     *slog.Logger
}

const (
	tokenLife   = time.Minute
	maxTokens   = 1000
	creation    = 30 * time.Second // for a client to open its streams
	idleDefault = 4 * time.Hour
)

// Server serves streams. Its methods may be called at once.
type Server struct {
	cfg      Config
	listener net.Listener

	mu     sync.Mutex
	tokens map[string]ticket
}

// ticket is a request that waits for its client.
type ticket struct {
	request any
	expires time.Time
}

// Open listens; Run serves.
func Open(cfg Config) (*Server, error) {
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = idleDefault
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listening for exec, attach and port-forward: %w", err)
	}
	return &Server{cfg: cfg, listener: l, tokens: map[string]ticket{}}, nil
}

// Run serves CRI clients until ctx ends, and ends their connections with it.
func (s *Server) Run(ctx context.Context) error {
	hs := &http.Server{
		Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { hs.Close() })
	defer stop()
	if err := hs.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving exec, attach and port-forward: %w", err)
	}
	return nil
}

// Close stops listening without Run.
func (s *Server) Close() error { return s.listener.Close() }

// GetExec answers CRI's Exec with a URL.
func (s *Server) GetExec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("exec names no command: %w", errdefs.ErrInvalidArgument)
	}
	if err := checkStreams(r.GetContainerId(), r); err != nil {
		return nil, err
	}
	url, err := s.issue("exec", r)
	return &runtimeapi.ExecResponse{Url: url}, err
}

// GetAttach answers CRI's Attach with a URL.
func (s *Server) GetAttach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := checkStreams(r.GetContainerId(), r); err != nil {
		return nil, err
	}
	url, err := s.issue("attach", r)
	return &runtimeapi.AttachResponse{Url: url}, err
}

// GetPortForward answers CRI's PortForward with a URL.
func (s *Server) GetPortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if r.GetPodSandboxId() == "" {
		return nil, fmt.Errorf("port-forward names no pod sandbox: %w", errdefs.ErrInvalidArgument)
	}
	url, err := s.issue("portforward", r)
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

// wanted is what exec and attach requests have in common.
type wanted interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

func checkStreams(id string, r wanted) error {
	switch {
	case id == "":
		return fmt.Errorf("no container is named: %w", errdefs.ErrInvalidArgument)
	case r.GetTty() && r.GetStderr():
		return fmt.Errorf("a terminal has no stderr of its own: %w", errdefs.ErrInvalidArgument)
	case !r.GetStdin() && !r.GetStdout() && !r.GetStderr():
		return fmt.Errorf("none of stdin, stdout and stderr is asked for: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// issue keeps a request for the one who brings its token.
func (s *Server) issue(kind string, r any) (string, error) {
	token := rand.Text() // 130 bits
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, k := range s.tokens {
		if now.After(k.expires) {
			delete(s.tokens, t)
		}
	}
	if len(s.tokens) >= maxTokens {
		return "", fmt.Errorf("%d streams wait for their clients: %w", maxTokens, errdefs.ErrResourceExhausted)
	}
	s.tokens[token] = ticket{r, now.Add(tokenLife)}
	return "http://" + s.listener.Addr().String() + "/" + kind + "/" + token, nil
}

// serve finds the request behind a token, which is then used up.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	s.mu.Lock()
	t, ok := s.tokens[token]
	delete(s.tokens, token)
	s.mu.Unlock()
	if !ok || time.Now().After(t.expires) {
		http.NotFound(w, r)
		return
	}
	switch q := t.request.(type) {
	case *runtimeapi.ExecRequest:
		if kind == "exec" {
			s.ServeExec(w, r, q)
			return
		}
	case *runtimeapi.AttachRequest:
		if kind == "attach" {
			s.ServeAttach(w, r, q)
			return
		}
	case *runtimeapi.PortForwardRequest:
		if kind == "portforward" {
			s.ServePortForward(w, r, q)
			return
		}
	}
	http.NotFound(w, r)
}

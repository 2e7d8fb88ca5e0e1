package server

import (
	"context"
	"errors"
	"log/slog"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/sandbox"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Streaming hands out the URLs of streaming endpoints; k8s.io/cri-streaming's
// server has this shape. Each fails without side effects.
type Streaming interface {
	GetExec(*runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	GetAttach(*runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	GetPortForward(*runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Stats read the counters of what runs. Each may be nil: then the RPCs that
// need it answer Unimplemented.
type Stats struct {
	// Container fills in cpu, memory, swap, io and the writable layer, all but the
	// last only if it runs; the attributes are filled in by the server. now wants
	// what is true at this moment, and not a moment ago.
	Container func(ctx context.Context, c container.Facts, now bool) (*runtimeapi.ContainerStats, error)
	// Pod fills in cpu, memory, io, network and processes of a pod, and puts in
	// what Container told of its containers.
	Pod func(context.Context, sandbox.Facts, []*runtimeapi.ContainerStats) (*runtimeapi.LinuxPodSandboxStats, error)
	// Metrics tells the metrics of a pod and its running containers, all of which
	// are among Descriptors.
	Metrics     func(context.Context, sandbox.Facts, []Measured) (*runtimeapi.PodSandboxMetrics, error)
	Descriptors []*runtimeapi.MetricDescriptor
}

// Measured is a container whose metrics are wanted.
type Measured struct {
	container.Facts
	Status *runtimeapi.ContainerStatus
}

// Config is what a Server serves.
type Config struct {
	Sandboxes  *sandbox.Store
	Containers *container.Store
	Images     *image.Store
	// Streaming may be nil: then Exec, Attach and PortForward answer Unavailable.
	Streaming Streaming
	Events    *Events
	Stats     Stats
	// Version is the program's own.
	Version string
	// Handlers are the runtime handlers that a pod may name; "" is the default one.
	Handlers map[string]Handler
	// Ready says why no container can be run now; nil, also as a function: it can.
	Ready         func(context.Context) error
	SystemdCgroup bool
	// Details, if not nil, are added to what Status tells if it is to be verbose.
	Details func() map[string]any
	// Options are more options of the gRPC servers: handlers of statistics, say.
	Options []grpc.ServerOption
	// Leaks list what no record accounts for; all of them make an audit, besides
	// the pinned namespaces, which the server asks for itself.
	Leaks []func(context.Context) ([]*api.Leak, error)
	Log   *slog.Logger
}

// Handler is what a runtime handler can do.
type Handler struct {
	// Unusable says why no pod can be run by it: its OCI runtime is missing, say.
	// It is not told in Status, and refuses its pods with that reason.
	Unusable error
	// RecursiveReadOnly says that mounts can be read-only with all below them.
	RecursiveReadOnly bool
	// NoUserNamespaces says, in a sentence, why pods cannot have user namespaces of
	// their own: what is too old, and what is needed. nil: they can.
	NoUserNamespaces error
}

// Server implements runtimeapi.RuntimeServiceServer and ImageServiceServer.
// Serve and InProcess reach it through the chain; called plainly, errors are not
// mapped.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	cfg Config
}

// New returns a server over parts that have been restored already.
func New(cfg Config) (*Server, error) {
	if cfg.Sandboxes == nil || cfg.Containers == nil || cfg.Images == nil || cfg.Events == nil || cfg.Log == nil {
		return nil, errors.New("making the CRI server: sandboxes, containers, images, events and log must be given")
	}
	if cfg.Ready == nil {
		cfg.Ready = func(context.Context) error { return nil }
	}
	cfg.Events.opened()
	return &Server{cfg: cfg}, nil
}

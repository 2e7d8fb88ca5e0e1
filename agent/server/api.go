package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/pod"
)

// Pods tells where the node's pods stand.
type Pods interface {
	// List returns the latest snapshot of every pod, by namespace and name.
	List() []pod.Snapshot
	// Get returns the snapshot of the pod of that name.
	Get(namespace, name string) (pod.Snapshot, bool)
	// Watch calls emit with every pod there is, synced once after them, then emit
	// with every change until ctx ends or emit fails; it never holds up a pod.
	Watch(ctx context.Context, emit func(s pod.Snapshot, gone bool) error, synced func() error) error
	// Render makes the Kubernetes object of a snapshot.
	Render(s pod.Snapshot) *v1.Pod
}

// Events tells what happened to the node's pods.
type Events interface {
	// Events returns what is remembered, oldest first; an empty namespace or name means all.
	Events(namespace, name string) []v1.Event
	// WatchEvents calls emit with what Events returns and then with each new event.
	WatchEvents(ctx context.Context, namespace, name string, emit func(v1.Event) error) error
}

// Sources is the node's desired state, as far as a person may ask about it or change it.
type Sources interface {
	// Apply makes the documents in body part of the desired state, or with dryRun
	// only says what would come of them. Documents with problems do not keep the
	// others from being applied.
	Apply(ctx context.Context, body []byte, dryRun bool) (applied []Applied, problems []Problem, err error)
	// Remove takes an applied pod out of the desired state; found tells whether it was in it.
	Remove(ctx context.Context, namespace, name string) (found bool, err error)
	// Problems returns what is wrong with the manifests now.
	Problems() []Problem
	// ManifestOf names the file or address that p came from, "run" for an applied pod, "" if it is not known.
	ManifestOf(p *v1.Pod) string
}

// Ref names an object.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// Applied is an object that was applied.
type Applied struct {
	Ref
	UID pod.UID `json:"uid,omitempty"` // of a pod
	// Change is "created", "configured" or "unchanged".
	Change string `json:"change,omitempty"`
}

// Problem is something wrong with a manifest.
type Problem struct {
	File string `json:"file"`
	// Line and Document count from 1; 0 if there is none.
	Line      int    `json:"line,omitempty"`
	Document  int    `json:"document,omitempty"`
	Object    Ref    `json:"object,omitzero"`
	FieldPath string `json:"fieldPath,omitempty"`
	Message   string `json:"message"`
}

// String renders p on one line, without the document's number: there is the line.
func (p Problem) String() string {
	text := p.File
	if p.Line > 0 {
		text += fmt.Sprintf(":%d", p.Line)
	}
	text += ": "
	if p.FieldPath != "" {
		text += p.FieldPath + ": "
	}
	return text + strings.TrimRight(p.Message, ".?")
}

// Logs reads container logs.
type Logs interface {
	// Logs writes the log at path to stdout and stderr, by the stream that each line
	// came from; a nil writer means that its lines are not wanted. It ends at the end
	// of the log or, following, when o.Ended says so and all has been read.
	Logs(ctx context.Context, path string, o LogOptions, stdout, stderr io.Writer) error
}

// LogOptions say what of a log is wanted.
type LogOptions struct {
	Follow bool
	Since  time.Time // zero: from the beginning
	Tail   int64     // so many last lines; below 0: all
	// LimitBytes is the most that is written; 0: no limit.
	LimitBytes int64
	Timestamps bool
	// Ended tells whether the instance that writes the log has ended.
	Ended func() bool
}

// Streams upgrades connections (SPDY or WebSocket) to streams of a container or
// sandbox; cri/stream.Server is one. Each method returns when the stream is over,
// and soon after r's context ends.
type Streams interface {
	// ServeExec runs a command in a container.
	ServeExec(w http.ResponseWriter, r *http.Request, q *runtimeapi.ExecRequest)
	// ServeAttach connects to a container's own streams.
	ServeAttach(w http.ResponseWriter, r *http.Request, q *runtimeapi.AttachRequest)
	// ServePortForward connects to ports in a sandbox.
	ServePortForward(w http.ResponseWriter, r *http.Request, q *runtimeapi.PortForwardRequest)
}

// Images are the runtime's. Errors are *pod.Error: NotFound, Denied, Unavailable,
// Invalid, Exhausted, Corrupt. A progress function may be called from any
// goroutine until the call returns; it does not block.
type Images interface {
	List(ctx context.Context) ([]Image, error)
	Pull(ctx context.Context, ref string, auth *Auth, progress func(Progress)) (Image, error)
	Import(ctx context.Context, archive io.Reader, progress func(Progress)) ([]Image, error)
	Remove(ctx context.Context, ref string) error
	Verify(ctx context.Context, repair bool, progress func(Progress)) ([]Damaged, error)
}

// Image is a stored image.
type Image struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	Size    int64    `json:"size"` // bytes
	Pinned  bool     `json:"pinned"`
	// InUse counts the containers made from it; the server fills it in.
	InUse int `json:"inUse"`
}

// Auth are credentials for one pull. They are never logged.
type Auth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Progress says how far a pull, an import or a verification is: a state, not an increment.
type Progress struct {
	Ref    string  `json:"ref"`
	Phase  string  `json:"phase"`
	Done   int64   `json:"done"`  // bytes
	Total  int64   `json:"total"` // bytes, 0 while unknown
	Layers []Layer `json:"layers,omitempty"`
}

// Layer is the progress of one layer.
type Layer struct {
	Digest string `json:"digest"`
	Phase  string `json:"phase"`
	Done   int64  `json:"done"`
	Total  int64  `json:"total"`
}

// Damaged is a piece of content that was found damaged.
type Damaged struct {
	Digest string   `json:"digest"`
	Why    string   `json:"why"`
	Images []string `json:"images"`
}

// ImportedFile is what became of a file in the import folder: images, by ID, or
// the reason why there are none.
type ImportedFile struct {
	Name   string   `json:"name"`
	Images []string `json:"images,omitempty"`
	Error  string   `json:"error,omitempty"`
}

// Leak is a resource of the host that no record accounts for.
type Leak struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Owner string `json:"owner"`
	Why   string `json:"why"`
}

// Version says what runs here.
type Version struct {
	Berth    string    `json:"berth"`
	Go       string    `json:"go"`
	Runtime  Runtime   `json:"runtime"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	StateDir string    `json:"stateDir"`
	RootDir  string    `json:"rootDir"`
	Node     string    `json:"node"`
}

// Runtime is the OCI runtime in use, or the external CRI runtime.
type Runtime struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Path    string `json:"path"`
	Why     string `json:"why"`
}

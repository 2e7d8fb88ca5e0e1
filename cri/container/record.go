package container

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/ocispec"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Record is what is kept of a container on disk: the facts that nothing else
// can tell again. Its State follows from it:
//
//	          Complete           Started           Exit
//	(making) ─────────▶ Created ─────────▶ Running ─────▶ Exited
//	    │                  └───────────── Exit ────────────▲
//	    └─ removed when the creation fails, or by Restore
//
// Facts only come to be; none is ever taken back.
type Record struct {
	SandboxID string `json:"sandboxID"`
	// Handler is the runtime handler of its sandbox; for the default one, by what
	// name else it is known. Empty if by none.
	Handler string `json:"handler,omitempty"`
	// HostUser is who its user is on the host, if it lives in a user namespace.
	HostUser *HostUser `json:"hostUser,omitempty"`
	// Config is the runtimeapi.ContainerConfig, in protobuf's wire form.
	Config []byte `json:"config"`
	// Pod is the runtimeapi.PodSandboxMetadata, likewise.
	Pod       []byte       `json:"pod"`
	Image     Image        `json:"image"`
	User      ocispec.User `json:"user"`
	LogPath   string       `json:"logPath"`
	CreatedAt time.Time    `json:"createdAt"`
	// CgroupsPath is the container's cgroup in the OCI's spelling.
	CgroupsPath string `json:"cgroupsPath"`
	// Monitor is its conmon, on record before it can do anything.
	Monitor monitor.Identity `json:"monitor"`
	// Init is its first process.
	Init monitor.Identity `json:"init"`
	// Left is what the OCI runtime of a configured handler left running beside
	// Init when it had created the container.
	Left []monitor.Identity `json:"left,omitempty"`
	// Complete says that the creation came to its end.
	Complete bool `json:"complete"`
	// StartFailure is why the runtime could not create it, if the fault is the
	// container's own: told when it is started, as the place where a wrong
	// command is expected to come out.
	StartFailure string `json:"startFailure,omitempty"`
	// StartCode is the exit code that goes with StartFailure.
	StartCode int32 `json:"startCode,omitempty"`
	// StartAt is when its start was begun; Started that it succeeded.
	StartAt time.Time `json:"startAt"`
	Started bool      `json:"started"`
	// Signalled says that we have set out to end the container; SignalSent that
	// its stop signal has been sent: some programs take a second one for an order
	// to leave at once. sending is in between, and this process's own.
	Signalled  bool `json:"signalled"`
	SignalSent bool `json:"signalSent,omitempty"`
	sending    bool
	Exit       *Exit `json:"exit,omitempty"`
}

// Exit is how a container ended.
type Exit struct {
	At      time.Time `json:"at"`
	Code    int32     `json:"code"`
	Reason  string    `json:"reason"`
	Message string    `json:"message,omitempty"`
	// OOMKills is how often the kernel killed in its cgroup for want of memory.
	OOMKills int64 `json:"oomKills,omitempty"`
}

// Image is what the image store knows of a container's image.
type Image struct {
	// ID is the image's ID, from which Rootfs mounts.
	ID string `json:"id"`
	// Ref is the digest reference reported as image_ref.
	Ref string `json:"ref"`
}

// Reasons of an Exit.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonCannotRun  = "ContainerCannotRun"
	reasonUnknown    = "ContainerStatusUnknown"
)

const (
	// startErrorCode is the exit code of what never ran; the other two are a
	// shell's, for a command that is not there and one that may not be executed.
	startErrorCode = 128
	deniedCode     = 126
	notFoundCode   = 127
	// killedCode is 128 + SIGKILL.
	killedCode = 137
)

// State derives a container's state.
func (r *Record) State() runtimeapi.ContainerState {
	switch {
	case r.Exit != nil:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case r.Started:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

// container is one container in memory. rec changes only through Store.update,
// under mu, and only together with its file.
type container struct {
	id     string
	config *runtimeapi.ContainerConfig // replaced, never changed; under mu
	pod    *runtimeapi.PodSandboxMetadata
	// op serialises what changes the container's life: start, update, remove.
	op chan struct{}
	// exited is closed when rec.Exit is set.
	exited chan struct{}
	// What the index finds it by; never changed.
	created         time.Time
	sandbox, podUID string

	mu      sync.Mutex
	rec     Record
	removed bool
	// listed is how lists tell it, nil while it is being made. Reading it waits for
	// nobody, not even for a record that is being written.
	listed atomic.Pointer[runtimeapi.Container]
}

func newContainer(id string, rec Record) (*container, error) {
	c := &container{
		id: id, rec: rec, config: &runtimeapi.ContainerConfig{}, pod: &runtimeapi.PodSandboxMetadata{},
		op: make(chan struct{}, 1), exited: make(chan struct{}),
	}
	if err := proto.Unmarshal(rec.Config, c.config); err != nil {
		return nil, fmt.Errorf("configuration of container %s on record is unreadable: %w", id, err)
	}
	if err := proto.Unmarshal(rec.Pod, c.pod); err != nil {
		return nil, fmt.Errorf("pod of container %s on record is unreadable: %w", id, err)
	}
	if rec.Exit != nil {
		close(c.exited)
	}
	c.list()
	c.created, c.sandbox, c.podUID = rec.CreatedAt.Round(0), rec.SandboxID, c.config.GetLabels()[podUID]
	return c, nil
}

// snapshot returns the record and configuration as they are now.
func (c *container) snapshot() (Record, *runtimeapi.ContainerConfig) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec, c.config
}

// name is what must be unique among living containers.
func name(pod *runtimeapi.PodSandboxMetadata, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%s_%d", m.GetName(), pod.GetName(), pod.GetNamespace(), pod.GetUid(), m.GetAttempt())
}

package sandbox

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/berthd/berth/cri/label"
	"github.com/berthd/berth/cri/mountns"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ID identifies a sandbox: 64 hexadecimal digits.
type ID string

// state is what lies on disk of a sandbox.
type state struct {
	Config    json.RawMessage `json:"config"` // PodSandboxConfig as protobuf JSON
	Handler   string          `json:"handler,omitempty"`
	CreatedAt time.Time       `json:"createdAt"`
	// Init is the PID 1 of a shared PID namespace.
	Init *process `json:"init,omitempty"`
	IPs  []string `json:"ips,omitempty"`
	// Labels hold the pod's SELinux level, taken until the record goes.
	Labels label.Labels `json:"labels,omitzero"`
	// Complete: made to the end. Stopped: its end has begun. Released: network,
	// init and namespaces are gone. They only ever become true, in this order.
	Complete bool `json:"complete,omitempty"`
	Stopped  bool `json:"stopped,omitempty"`
	Released bool `json:"released,omitempty"`
}

// Status is what is known of a sandbox at one instant. It is immutable.
type Status struct {
	ID        ID
	Config    *runtimeapi.PodSandboxConfig
	Handler   string
	CreatedAt time.Time
	Ready     bool
	// Why says what keeps the sandbox from being ready; empty if it is.
	Why string
	// IPs are its addresses, primary first; none on the host's network.
	IPs []string
	// InitPID is the PID 1 of the shared PID namespace; 0 if there is none.
	InitPID int
}

// box is a sandbox in memory. Its state is derived, never stored:
//
//	            record      network ns   init (if any)   state
//	creating    incomplete  -            -               NotReady, not listed while the creation runs
//	ready       complete    pinned       alive           Ready
//	broken      complete    not pinned or dead           NotReady
//	stopping    stopped     -            -               NotReady
//	released    released    -            -               NotReady: only files and record are left
//
//	creating ──▶ ready ──▶ stopping ──▶ released ──▶ (removed)
//	    │          ├▶ broken ─▲              ▲
//	    └──────────┴─────────────────────────┘  Remove, from anywhere
type box struct {
	id ID
	// busy holds a token while an operation (create, stop, remove) runs.
	busy chan struct{}
	// What the index finds it by; never changed.
	created time.Time
	podUID  string

	mu       sync.Mutex
	rec      state
	config   *runtimeapi.PodSandboxConfig
	pinned   bool // every namespace it should have is pinned
	alive    bool // its init, if it has one, runs
	stale    bool // the record is of an earlier boot
	stray    bool // there is no readable record
	creating bool
	watch    *watch // of its init
}

func newBox(id ID) *box { return &box{id: id, busy: make(chan struct{}, 1)} }

// status derives the state from the facts.
func (b *box) status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{ID: b.id, Config: b.config, Handler: b.rec.Handler, CreatedAt: b.rec.CreatedAt, IPs: b.rec.IPs}
	if b.rec.Init != nil {
		s.InitPID = b.rec.Init.PID
	}
	switch {
	case b.stale:
		s.Why = "the machine was rebooted"
	case !b.rec.Complete:
		s.Why = "its creation was not finished"
	case b.rec.Stopped:
		s.Why = "it was stopped"
	case !b.pinned:
		s.Why = "its namespaces are gone"
	case b.rec.Init != nil && !b.alive:
		s.Why = "the init of its PID namespace has ended"
	}
	s.Ready = s.Why == ""
	return s
}

// hidden tells boxes that are not to be listed: those whose creation runs, and
// remains without a readable record.
func (b *box) hidden() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.creating || b.stray
}

func (b *box) snapshot() (state, *runtimeapi.PodSandboxConfig) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec, b.config
}

// modes are the namespaces a sandbox shares with the host or has to itself.
type modes struct{ hostNet, hostIPC, hostPID, sharedPID, userns bool }

func modesOf(c *runtimeapi.PodSandboxConfig) modes {
	n := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	return modes{
		hostNet:   n.GetNetwork() == runtimeapi.NamespaceMode_NODE,
		hostIPC:   n.GetIpc() == runtimeapi.NamespaceMode_NODE,
		hostPID:   n.GetPid() == runtimeapi.NamespaceMode_NODE,
		sharedPID: n.GetPid() == runtimeapi.NamespaceMode_POD,
		userns:    ownUsers(n.GetUsernsOptions()),
	}
}

// kinds are the namespaces of the sandbox's own. The UTS namespace goes with
// the network: a pod on the host's network has the host's name.
func (m modes) kinds() []mountns.Kind {
	var out []mountns.Kind
	if m.userns {
		out = append(out, mountns.User)
	}
	if !m.hostNet {
		out = append(out, mountns.Net, mountns.UTS)
	}
	if !m.hostIPC {
		out = append(out, mountns.IPC)
	}
	if m.sharedPID {
		out = append(out, mountns.PID)
	}
	return out
}

func (r *state) decodeConfig() (*runtimeapi.PodSandboxConfig, error) {
	var c runtimeapi.PodSandboxConfig
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r.Config, &c); err != nil {
		return nil, fmt.Errorf("decoding the recorded sandbox configuration: %w", err)
	}
	return &c, nil
}

// fullName is the name that only one sandbox may hold.
func fullName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", m.GetName(), m.GetNamespace(), m.GetUid(), m.GetAttempt())
}

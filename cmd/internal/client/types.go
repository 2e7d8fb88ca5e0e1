package client

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/source"
)

// Explanation says in plain words where a pod stands.
type Explanation struct {
	Pod       string    `json:"pod,omitempty"` // namespace/name
	Phase     string    `json:"phase,omitempty"`
	Well      bool      `json:"well"`
	Cause     string    `json:"cause"`
	Reason    string    `json:"reason,omitempty"`
	Container string    `json:"container,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Next      string    `json:"next,omitempty"`
	NextAt    time.Time `json:"nextAt,omitzero"`
	Advice    string    `json:"advice,omitempty"` // what a person can do
	// Problems are those of the pod's manifest.
	Problems []source.Problem `json:"problems,omitempty"`
	// Containers lists each container's state, if the agent told.
	Containers []ContainerState `json:"containers,omitempty"`
}

// ContainerState is one container's state in a few words.
type ContainerState struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// InFlight is something that the agent is doing for a pod right now.
type InFlight struct {
	Op        string    `json:"op"`
	Container string    `json:"container,omitempty"`
	Since     time.Time `json:"since,omitzero"`
}

// PodDetail is a pod with everything that the agent knows of it.
type PodDetail struct {
	Pod         v1.Pod           `json:"pod"`
	Explanation Explanation      `json:"explanation"`
	InFlight    []InFlight       `json:"inFlight"`
	Manifest    string           `json:"manifest"` // path or URL, or "run"
	Problems    []source.Problem `json:"problems"`
}

// The types of watch events.
const (
	Added    = "ADDED"
	Modified = "MODIFIED"
	Deleted  = "DELETED"
	Bookmark = "BOOKMARK" // everything that was there at the beginning has been told
)

// WatchEvent is one change of a pod.
type WatchEvent struct {
	Type        string      `json:"type"`
	Pod         v1.Pod      `json:"pod"`
	Explanation Explanation `json:"explanation"`
}

// Applied is what the agent took in, and what it did not and why.
type Applied struct {
	Applied  []AppliedRef     `json:"applied"`
	Problems []source.Problem `json:"problems"`
}

// AppliedRef names an object that the agent took in.
type AppliedRef struct {
	source.Ref
	// UID of a pod, if the agent told: an older pod of the name has another.
	UID string `json:"uid,omitempty"`
}

// Image is an image in the agent's store.
type Image struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	Size    int64    `json:"size"` // bytes
	Pinned  bool     `json:"pinned"`
	InUse   int      `json:"inUse"` // containers made from it
}

// Progress is how far a pull or an import has come, in bytes.
type Progress struct {
	Ref    string          `json:"ref"`
	Phase  string          `json:"phase"`
	Done   int64           `json:"done"`
	Total  int64           `json:"total"` // 0: not known yet
	Layers []LayerProgress `json:"layers"`
}

// LayerProgress is how far one layer has come, in bytes.
type LayerProgress struct {
	Digest string `json:"digest"`
	Phase  string `json:"phase"`
	Done   int64  `json:"done"`
	Total  int64  `json:"total"`
}

// ImportedFile is what became of a file in the import folder.
type ImportedFile struct {
	Name   string   `json:"name"`
	Images []string `json:"images"`
	Error  string   `json:"error"`
}

// Damaged is a piece of stored content that was found damaged.
type Damaged struct {
	Digest string   `json:"digest"`
	Why    string   `json:"why"` // and what was done about it
	Images []string `json:"images"`
}

// ImageEvent is one line of the answer to work on images: progress, or the end.
type ImageEvent struct {
	Progress
	Damaged *[]Damaged `json:"damaged,omitempty"`
	Image   *Image     `json:"image,omitempty"`
	Images  []Image    `json:"images,omitempty"`
	Error   string     `json:"error,omitempty"`
}

// Runtime is the OCI runtime that the agent uses.
type Runtime struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Path    string `json:"path"`
	Why     string `json:"why"`
}

// Version is what the agent says of itself.
type Version struct {
	Berth    string    `json:"berth"`
	Go       string    `json:"go"`
	Runtime  Runtime   `json:"runtime,omitzero"`
	Pid      int       `json:"pid"`
	Started  time.Time `json:"started,omitzero"`
	StateDir string    `json:"stateDir"`
	RootDir  string    `json:"rootDir"`
	Node     string    `json:"node"`
}

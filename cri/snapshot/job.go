package snapshot

import (
	"errors"
	"fmt"

	"github.com/berthd/berth/cri/snapshot/layer"
)

// Job is one layer to unpack: a tar stream, plain, gzip or zstd, applied into
// Upper. See cri/snapshot/layer for the modes.
type Job struct {
	// Blob is the file that holds the layer.
	Blob string `json:"-"`
	// Mode says what is below. What was unpacked Alone is finished by Settle.
	Mode layer.Mode `json:"mode"`
	// DiffID is the digest the uncompressed tar stream must have.
	DiffID string `json:"diffID"`
	// Upper is the empty directory that receives the layer; Work is overlayfs'
	// work directory beside it, used only by the mode Over.
	Upper string `json:"upper"`
	Work  string `json:"work"`
	// Lower are the directories of the layers below, topmost first; for the mode Over.
	Lower []string `json:"lower,omitempty"`
	// Limits bound what the layer may cost.
	Limits Limits `json:"limits"`
}

// Limits bound one layer. Zero fields take the defaults.
type Limits struct {
	// Entries is the greatest number of entries (default 2 million).
	Entries int64 `json:"entries"`
	// Bytes is the greatest sum of file sizes (default 64 GiB).
	Bytes int64 `json:"bytes"`
	// Memory is what the unpacking child may allocate, in bytes (default 512 MiB).
	Memory int64 `json:"memory"`
}

func (l Limits) withDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = 2_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 64 << 30
	}
	if l.Memory == 0 {
		l.Memory = 512 << 20
	}
	return l
}

// Result is what a layer turned out to be.
type Result struct {
	// Entries counts tar entries, Bytes the sum of their sizes.
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	// Pending is what Settle is to be given after the mode Alone.
	Pending layer.Pending `json:"pending,omitzero"`
}

// Fault says why a layer could not be unpacked.
type Fault string

// The faults of a layer.
const (
	// FaultLayer: the stream is no layer (truncated, bad tar, bad compression).
	FaultLayer Fault = "layer"
	// FaultDigest: the uncompressed stream has another digest than DiffID.
	FaultDigest Fault = "digest"
	// FaultLimit: the layer exceeds Limits.Entries or Limits.Bytes.
	FaultLimit Fault = "limit"
	// FaultMemory: the child needed more than Limits.Memory.
	FaultMemory Fault = "memory"
	// FaultDisk: the disk is full.
	FaultDisk Fault = "disk"
	// FaultHost: the host refused something (a mount, a chroot, a start).
	FaultHost Fault = "host"
)

// UnpackError is the error of Unpack.
type UnpackError struct {
	Fault Fault
	Err   error
}

// Error says what failed.
func (e *UnpackError) Error() string { return fmt.Sprintf("unpack layer: %v", e.Err) }

// Unwrap gives the cause.
func (e *UnpackError) Unwrap() error { return e.Err }

// FaultOf tells the fault in err's chain; empty if there is none.
func FaultOf(err error) Fault {
	var ue *UnpackError
	if errors.As(err, &ue) {
		return ue.Fault
	}
	return ""
}

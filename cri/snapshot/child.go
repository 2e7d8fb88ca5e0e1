package snapshot

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/berthd/berth/cri/snapshot/layer"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// UnpackArg is the argument by which the own binary becomes the unpacking child.
const UnpackArg = "__unpack"

const (
	// childEnv marks the child, so that a binary that forgot to call UnpackMain
	// cannot start children without end.
	childEnv = "BERTH_UNPACK_CHILD"
	// maxWindow bounds zstd's window: 128 MiB is what "zstd --long" makes.
	maxWindow = 128 << 20
	// maxName bounds a path in a layer; PATH_MAX is all the kernel takes.
	maxName = 4096
	// tailSlack is how much a stream may be longer than the files in it.
	tailSlack = 1 << 30
)

// report is what the child writes to its standard output.
type report struct {
	Result Result `json:"result"`
	Fault  Fault  `json:"fault,omitempty"`
	Error  string `json:"error,omitempty"`
	// NeedsLower: the layer was to be applied alone and cannot be.
	NeedsLower bool `json:"needsLower,omitempty"`
}

// UnpackMain is the main function of the unpacking child; it never returns.
// Every binary that unpacks calls it first thing in main (tests: in TestMain)
// when its first argument is UnpackArg. It reads a Job from standard input and
// the layer from descriptor 3, and writes one JSON report to standard output.
func UnpackMain() {
	// Inside the layer's root nothing of the host's may be looked up by accident.
	time.Local = time.UTC
	unix.Umask(0)
	rep := report{}
	// This is a main function: the context is ended by the parent's kill.
	res, err := unpackChild(context.Background())
	rep.Result = res
	if err != nil {
		rep.Fault, rep.Error, rep.NeedsLower = classify(err), err.Error(), errors.Is(err, layer.ErrNeedsLower)
	}
	if err := json.NewEncoder(os.Stdout).Encode(rep); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func classify(err error) Fault {
	var ue *UnpackError
	switch {
	case errors.As(err, &ue):
		return ue.Fault
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return FaultDisk
	case errors.Is(err, layer.ErrLimit):
		return FaultLimit
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EROFS), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return FaultHost
	}
	return FaultLayer
}

func fault(f Fault, format string, args ...any) error {
	return &UnpackError{Fault: f, Err: fmt.Errorf(format, args...)}
}

func unpackChild(ctx context.Context) (Result, error) {
	var job Job
	if err := json.NewDecoder(io.LimitReader(os.Stdin, 4<<20)).Decode(&job); err != nil {
		return Result{}, fault(FaultHost, "read the job: %w", err)
	}
	job.Limits = job.Limits.withDefaults()
	limitMemory(job.Limits.Memory)
	upper, err := os.Open(job.Upper)
	if err != nil {
		return Result{}, fault(FaultHost, "open the layer's directory: %w", err)
	}
	if err := confine(job); err != nil {
		return Result{}, err
	}
	res, err := apply(ctx, os.NewFile(3, "layer"), job)
	if err != nil {
		return res, err
	}
	// The snapshot is committed to a synced database next; files that a power
	// cut would leave empty must not be in it.
	if err := unix.Syncfs(int(upper.Fd())); err != nil {
		return res, fault(FaultHost, "write the layer to disk: %w", err)
	}
	return res, nil
}

// limitMemory bounds what this process may allocate. RLIMIT_DATA counts
// writable private memory only, so Go's large reservations do not matter.
func limitMemory(n int64) {
	debug.SetMemoryLimit(n * 3 / 4)
	lim := unix.Rlimit{Cur: uint64(n), Max: uint64(n)}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_DATA, &old); err == nil && old.Max < lim.Max {
		return
	}
	// Failing to lower a limit leaves the soft one of the Go runtime.
	_ = unix.Setrlimit(unix.RLIMIT_DATA, &lim)
}

// confine makes the layer's directory, seen through the layers below it, the
// root of this process. The parent gave it a mount namespace of its own.
func confine(job Job) error {
	if job.Mode == layer.Over {
		if err := dressRoot(job); err != nil {
			return fault(FaultHost, "give the layer's root the attributes of the one below: %w", err)
		}
		if err := overlayMount(job.Upper, job.Lower, job.Upper, job.Work, nil); err != nil {
			return fault(FaultHost, "mount the layers below: %w", err)
		}
	}
	if err := unix.Chroot(job.Upper); err != nil {
		return fault(FaultHost, "chroot into the layer: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fault(FaultHost, "chdir into the layer: %w", err)
	}
	return nil
}

// dressRoot makes the root of a layer what the root below it is: overlayfs shows
// the topmost.
func dressRoot(job Job) error {
	from, err := os.Open(job.Lower[0])
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Open(job.Upper)
	if err != nil {
		return err
	}
	defer to.Close()
	return layer.CopyAttributes(int(from.Fd()), int(to.Fd()))
}

func apply(ctx context.Context, blob io.Reader, job Job) (Result, error) {
	var res Result
	stream, err := Decompress(blob)
	if err != nil {
		return res, err
	}
	sum := sha256.New()
	raw := &boundedReader{r: stream, left: job.Limits.Bytes + tailSlack, sum: sum}
	res.Pending, err = layer.Apply(ctx, raw, job.Mode, func(h *tar.Header) error { return admit(h, job.Limits, &res) })
	if err != nil {
		return res, err
	}
	// A tar reader stops at the end marker; the digest covers the padding too.
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return res, err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != job.DiffID {
		return res, fault(FaultDigest, "uncompressed layer has digest %s, its image says %s", got, job.DiffID)
	}
	return res, nil
}

// admit accounts for one entry. Sizes are taken from the header, because a
// sparse entry writes more than it reads.
func admit(h *tar.Header, lim Limits, res *Result) error {
	res.Entries++
	res.Bytes += max(h.Size, 0)
	switch {
	case res.Entries > lim.Entries:
		return fault(FaultLimit, "layer has more than %d entries", lim.Entries)
	case h.Size < 0 || res.Bytes > lim.Bytes:
		return fault(FaultLimit, "layer unpacks to more than %d bytes", lim.Bytes)
	case len(h.Name) > maxName || len(h.Linkname) > maxName:
		return fault(FaultLimit, "layer has a path of more than %d bytes", maxName)
	case strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0):
		return fault(FaultLayer, "layer has a path with a zero byte")
	}
	return nil
}

// boundedReader hashes what passes and fails when more than left bytes pass.
type boundedReader struct {
	r    io.Reader
	left int64
	sum  hash.Hash
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, fault(FaultLimit, "layer's stream is longer than its limit")
	}
	b.sum.Write(p[:n])
	return n, err
}

// Decompress detects gzip and zstd by their first bytes and returns the plain
// stream; anything else passes unchanged. No external program is run, and the
// memory a hostile stream can claim is bounded (zstd windows to 128 MiB).
func Decompress(r io.Reader) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return zr, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return zr.IOReadCloser(), nil
	}
	return br, nil
}

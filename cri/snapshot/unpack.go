package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/berthd/berth/cri/snapshot/layer"
	"github.com/berthd/berth/test/failpoint"
)

// Unpack unpacks one layer in a child of this binary and waits for it. progress,
// if not nil, is called a few times a second, from this goroutine's own, with
// the number of bytes of Job.Blob that were read. When ctx ends, or this
// process dies, the child is killed. What the child leaves in Job.Upper after
// an error is garbage; the caller removes the directory. The error is a
// *UnpackError, layer.ErrNeedsLower (see there) or ctx's.
func Unpack(ctx context.Context, job Job, progress func(int64)) (Result, error) {
	if os.Getenv(childEnv) != "" {
		return Result{}, fault(FaultHost, "this is the unpacking child: the binary does not call snapshot.UnpackMain first")
	}
	job.Limits = job.Limits.withDefaults()
	blob, err := os.Open(job.Blob)
	if err != nil {
		return Result{}, fault(FaultHost, "open the layer's blob: %w", err)
	}
	defer blob.Close()
	in, err := json.Marshal(job)
	if err != nil {
		return Result{}, fault(FaultHost, "encode the job: %w", err)
	}
	out, errOut := cappedBuffer{most: 4 << 20}, cappedBuffer{most: 64 << 10}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", UnpackArg)
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.ExtraFiles = []*os.File{blob}
	// Stored by nobody else: the child needs no environment but its mark. A program
	// with the race detector in it, which alone reads GORACE, would sleep a second
	// before each exit.
	cmd.Env = []string{childEnv + "=1", "GOMAXPROCS=2", "GORACE=atexit_sleep_ms=0"}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Unsharing here, not in the child, gives all its threads the namespace.
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	stop := watchOffset(blob, progress)
	failpoint.Hit("cri/snapshot/unpack-start")
	err = runLocked(cmd)
	failpoint.Hit("cri/snapshot/unpack-done")
	stop()
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	return readReport(out.Bytes(), errOut.Bytes(), err, job.Limits)
}

// runLocked runs cmd on a thread that lives until cmd has ended: the kernel
// sends the parent-death signal when the starting thread ends.
func runLocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// watchOffset reports the blob's offset, which parent and child share, until
// the returned function is called; that waits for the last report.
func watchOffset(blob *os.File, progress func(int64)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			if n, err := blob.Seek(0, io.SeekCurrent); err == nil {
				progress(n)
			}
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		if n, err := blob.Seek(0, io.SeekCurrent); err == nil {
			progress(n)
		}
	}
}

func readReport(out, errOut []byte, runErr error, lim Limits) (Result, error) {
	if runErr != nil {
		text := strings.TrimSpace(string(errOut))
		if strings.Contains(text, "out of memory") || strings.Contains(text, "cannot allocate memory") {
			return Result{}, fault(FaultMemory, "needs more than the %d MiB it may have", lim.Memory>>20)
		}
		first, _, _ := strings.Cut(text, "\n")
		return Result{}, fault(FaultHost, "the unpacking child failed: %w (%q)", runErr, first)
	}
	var rep report
	if err := json.Unmarshal(out, &rep); err != nil {
		return Result{}, fault(FaultHost, "the unpacking child gave no report: %w", err)
	}
	if rep.NeedsLower {
		return Result{}, layer.ErrNeedsLower
	}
	if rep.Error != "" {
		return rep.Result, &UnpackError{Fault: rep.Fault, Err: reported(rep)}
	}
	return rep.Result, nil
}

// reported is the child's error, with the errno a caller may look for.
func reported(rep report) error {
	text := strings.TrimPrefix(rep.Error, "unpack layer: ")
	if rep.Fault == FaultDisk {
		return fmt.Errorf("%s: %w", text, syscall.ENOSPC)
	}
	return errors.New(text)
}

// Settle finishes a layer that was unpacked alone: see layer.Settle.
func Settle(ctx context.Context, upper string, lower []string, p layer.Pending) error {
	failpoint.Hit("cri/snapshot/settle")
	err := layer.Settle(ctx, upper, lower, p)
	failpoint.Hit("cri/snapshot/settle-done")
	switch {
	case err == nil, errors.Is(err, layer.ErrNeedsLower), ctx.Err() != nil:
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault(FaultDisk, "put the layer on those below: %w", err)
	}
	return fault(FaultHost, "put the layer on those below: %w", err)
}

// cappedBuffer keeps the first bytes written to it.
type cappedBuffer struct {
	bytes.Buffer
	most int
}

func (c *cappedBuffer) Write(p []byte) (int, error) {
	if room := c.most - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

package ociruntime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

// ErrNoCheckpoint marks why containers cannot be checkpointed here: something is
// missing, and the error says what.
var ErrNoCheckpoint = errors.New("containers cannot be checkpointed here")

// criuTime bounds the question whether CRIU works on this kernel.
const criuTime = 20 * time.Second

// CanCheckpoint tells why the runtime cannot checkpoint containers: it has to
// know how, and CRIU has to be installed and fit the kernel. The error wraps
// ErrNoCheckpoint.
func (r *Runtime) CanCheckpoint(ctx context.Context) error {
	switch {
	case r.bin.Name == "crun" && !slices.Contains(r.bin.Features, "+CRIU"):
		return fmt.Errorf("%w: %s %s was built without CRIU; run the pod by a handler with runc, or with a crun built with it", ErrNoCheckpoint, r.Name(), r.bin.Version)
	case r.bin.Name != "crun" && r.bin.Name != "runc":
		return fmt.Errorf("%w: %s is neither crun nor runc, and is not known to checkpoint", ErrNoCheckpoint, r.Name())
	}
	criu, err := lookInPath("criu")
	if err != nil {
		return fmt.Errorf("%w: CRIU is not installed (apt-get install criu)", ErrNoCheckpoint)
	}
	ctx, cancel := context.WithTimeout(ctx, criuTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, criu, "check")
	cmd.Env, cmd.WaitDelay = environ, time.Second
	out := limited{max: maxStderr}
	cmd.Stdout, cmd.Stderr = &out, &out
	failpoint.Hit("cri/ociruntime/criu-check")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s does not work on this kernel: criu check: %s (%w)", ErrNoCheckpoint, criu, firstLine(out.Bytes()), err)
	}
	return nil
}

// lookInPath looks where runtimes do, whatever our own PATH is.
func lookInPath(name string) (string, error) {
	for _, dir := range strings.Split(strings.TrimPrefix(environ[0], "PATH="), ":") {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return clip(string(line))
}

// Checkpoint lets CRIU write the state of a running container into the directory
// images, and its log into work; the container runs on. It takes as long as ctx
// lets it: the container's memory is written. A container that was stopped for a
// checkpoint that failed is let go on.
func (r *Runtime) Checkpoint(ctx context.Context, id, images, work string) error {
	failpoint.Hit("cri/ociruntime/checkpoint")
	_, err := r.callWithin(ctx, nil, "checkpoint", "--image-path="+images, "--work-path="+work, "--leave-running", "--tcp-established", "--file-locks", id)
	failpoint.Hit("cri/ociruntime/checkpoint-done")
	if err == nil {
		return nil
	}
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if st, serr := r.State(again, id); serr == nil && st.Status == "paused" {
		_, rerr := r.call(again, nil, "resume", id)
		err = errors.Join(err, rerr)
	}
	if b, rerr := os.ReadFile(work + "/dump.log"); rerr == nil {
		return fmt.Errorf("%w; CRIU says: %s", err, lastErrors(b))
	}
	return err
}

// lastErrors are the last lines of a CRIU log that tell of errors.
func lastErrors(log []byte) string {
	var found []string
	for _, line := range strings.Split(string(log), "\n") {
		if _, text, ok := strings.Cut(line, "Error "); ok {
			found = append(found, strings.TrimSpace(text))
		}
	}
	if len(found) > 3 {
		found = found[len(found)-3:]
	}
	return strings.ToValidUTF8(strings.Join(found, "; "), "?")
}

package runtime

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of termination messages.
const (
	maxMessage      = 4096
	maxLogMessage   = 2048
	maxMessageLines = 80
	maxLogTail      = 64 << 10
)

// terminationFile makes the empty file that the container writes its last words
// to, below dir. Its name is that of the attempt: a create that is repeated finds it.
func terminationFile(dir string, a pod.Action) (string, error) {
	path := filepath.Join(dir, fmt.Sprintf("%08x", a.Attempt))
	failpoint.Hit("agent/runtime/termination-file-write")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return "", fmt.Errorf("make the termination message file: %w", err)
	}
	// The umask must not keep the container's user from writing.
	if err := os.Chmod(path, 0o666); err != nil {
		return "", fmt.Errorf("make the termination message file: %w", err)
	}
	return path, nil
}

// message is what an ended container has to say: the runtime's words, then its
// termination message, by the policy it was created with.
func (r *Runtime) message(uid pod.UID, s *cri.ContainerStatus) string {
	said := s.Message
	words := r.lastWords(uid, s)
	switch {
	case words == "":
		return said
	case said == "":
		return words
	}
	return said + ": " + words
}

func (r *Runtime) lastWords(uid pod.UID, s *cri.ContainerStatus) string {
	at := s.Annotations[annotationTerminationPath]
	if at == "" {
		return ""
	}
	for _, m := range s.Mounts {
		if m.ContainerPath != at {
			continue
		}
		// Below the pod's directory or not at all: the path comes from the runtime.
		text, err := tail(filepath.Join(r.podDir(uid), "containers"), m.HostPath, maxMessage)
		if err == nil && len(text) > 0 {
			return strings.ToValidUTF8(string(text), "\uFFFD")
		}
		break
	}
	fallback := s.Annotations[annotationTerminationPolicy] == string(v1.TerminationMessageFallbackToLogsOnError)
	if !fallback || s.ExitCode == 0 || s.Reason == "ContainerCannotRun" || s.LogPath == "" {
		return ""
	}
	text, err := tail(r.cfg.LogDir, s.LogPath, maxLogTail)
	if err != nil {
		return ""
	}
	return logMessage(text)
}

// tail reads the end of the regular file at path, which must lie below root; no
// link leads out of it, and a FIFO that somebody put there is not waited for.
func tail(root, path string, limit int64) ([]byte, error) {
	rel, err := filepath.Rel(root, path)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("%s is not below %s", path, root)
	}
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	before, err := dir.Lstat(rel)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := dir.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-limit), limit))
}

// logMessage takes the last lines out of the end of a CRI log: the header of
// each line ("time stream tag ") goes, a partial line joins the next.
func logMessage(text []byte) string {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if len(text) == maxLogTail {
		lines = lines[1:] // cut in its middle
	}
	lines = lines[max(0, len(lines)-1-maxMessageLines):]
	var b strings.Builder
	for _, line := range lines {
		parts := bytes.SplitN(line, []byte(" "), 4)
		if len(parts) < 4 {
			continue
		}
		content := parts[3]
		if bytes.HasPrefix(parts[2], []byte("P")) {
			content = bytes.TrimSuffix(content, []byte("\n"))
		}
		b.Write(content)
	}
	out := b.String()
	return strings.ToValidUTF8(out[max(0, len(out)-maxLogMessage):], "\uFFFD")
}

// logged counts the instances that the pod has logs of, by container. What
// cannot be read has none: the count only keeps old logs from being written over
// when everything else is lost. (kubelet: calcRestartCountByLogDir)
func (r *Runtime) logged(p *v1.Pod) map[pod.ContainerName]uint32 {
	name := logDirName(p)
	if !filepath.IsLocal(name) || strings.Contains(name, "/") {
		return nil
	}
	var all map[pod.ContainerName]uint32
	dir := filepath.Join(r.cfg.LogDir, name)
	containers, _ := os.ReadDir(dir) // none before the first container
	for _, c := range containers {
		files, _ := os.ReadDir(filepath.Join(dir, c.Name()))
		for _, f := range files {
			n, ok := logNumber(f.Name())
			if !ok {
				continue
			}
			if st, err := f.Info(); err != nil || st.Size() == 0 {
				continue // of one that was made and never started: its number is used again
			}
			if all == nil {
				all = map[pod.ContainerName]uint32{}
			}
			all[pod.ContainerName(c.Name())] = max(all[pod.ContainerName(c.Name())], n+1)
		}
	}
	return all
}

// logNumber is the number of the instance that a log file of this name is of:
// 3.log, and 3.log.20260102-150405.gz once rotated.
func logNumber(name string) (uint32, bool) {
	number, rest, ok := strings.Cut(name, ".")
	if !ok || rest != "log" && !strings.HasPrefix(rest, "log.") {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 32)
	return uint32(n), err == nil && number[0] >= '0' && number[0] <= '9'
}

package ociruntime

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Kind tells what a runtime's failure means.
type Kind int

// The kinds. The first group is the container's own fault and will not go away
// by trying again.
const (
	Unknown Kind = iota
	// CommandNotFound: the command is not in the image.
	CommandNotFound
	// CommandDenied: the command may not be executed, or is not a program for this machine.
	CommandDenied
	// BadMount: a mount's source and its place in the image do not fit.
	BadMount
	// BadWorkingDir: the working directory cannot be entered.
	BadWorkingDir

	// NotFound: the runtime does not know the container.
	NotFound
	// NotRunning: it has no process.
	NotRunning
	// OutOfMemory: the memory limit is too small for the runtime's own start.
	OutOfMemory
	// Timeout: the call was given up; it may have happened or not.
	Timeout
	// Unusable: the runtime itself cannot be run.
	Unusable
	// Misbehaved: it did not do what it said it had done, or answered nonsense.
	Misbehaved
)

// Error is a failed call of the runtime.
type Error struct {
	Op      string // the subcommand
	Runtime string // "crun"
	Kind    Kind
	// Message is one sentence for the person who wrote the pod.
	Message string
	Err     error
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.Err }

// OfContainer tells whether the failure is the container's own: its command,
// mounts, working directory or limits are wrong, not the node.
func (e *Error) OfContainer() bool {
	return e.Kind >= CommandNotFound && e.Kind <= BadWorkingDir || e.Kind == OutOfMemory
}

func isKind(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// IsNotFound tells whether err says that the runtime does not know the container.
func IsNotFound(err error) bool { return isKind(err, NotFound) }

// pattern recognises one kind of failure in a runtime's cleaned words. say makes
// the sentence; its %s is the first group, quoted.
type pattern struct {
	re   *regexp.Regexp
	kind Kind
	say  string
}

var patterns = []pattern{
	{regexp.MustCompile(`exec: "?([^":]+)"?: executable file not found`), CommandNotFound, "the command %s is not in the image (or not in its $PATH)"},
	{regexp.MustCompile("executable file [`'\"]?([^`'\"]*?)[`'\"]? ?not found"), CommandNotFound, "the command %s is not in the image (or not in its $PATH)"},
	{regexp.MustCompile(`exec: "?([^":]+)"?: (?:stat [^:]+: )?no such file or directory`), CommandNotFound,
		"the command %s is not in the image, or the interpreter it names is not"},
	{regexp.MustCompile("open executable: No such file or directory()"), CommandNotFound, "the command is not in the image%.0s"},
	{regexp.MustCompile(`exec: "?([^":]+)"?: (?:permission denied|is a directory)`), CommandDenied, "the command %s may not be executed: it is a directory or lacks the x permission"},
	{regexp.MustCompile("open executable: (Permission denied|Operation not permitted|Is a directory)"), CommandDenied, "the command may not be executed: %s"},
	{regexp.MustCompile("(?i)exec(?:utable)?[^:]*:? .*(exec format error)"), CommandDenied, "the command is not a program for this machine: %s"},
	{regexp.MustCompile(`(?i)mounting "([^"]+)" to rootfs .*not a directory`), BadMount, "mount of %s: one of its source and its place in the image is a directory, the other is a file"},
	{regexp.MustCompile("(?i)mount `([^`']+)` to `[^`']*`: (?:not a directory|is a directory)"), BadMount,
		"mount of %s: one of its source and its place in the image is a directory, the other is a file"},
	{regexp.MustCompile("(?i)(?:mount `([^`']+)` to `[^`']*`|mounting \"([^\"]+)\" to rootfs .*): no such file or directory"), BadMount, "mount of %s: its source does not exist"},
	{regexp.MustCompile("(?i)chdir(?: to (?:cwd )?\\(?[`\"]?([^`\")]+)[`\"]?\\)?)?"), BadWorkingDir, "the working directory %s cannot be entered"},
	{regexp.MustCompile(`error during container init: mkdir ([^:]+): not a directory`), BadWorkingDir, "the working directory %s cannot be entered: it is not a directory"},
	{regexp.MustCompile("(?i)(?:container .*does not exist|error opening file .*/status`?: no such file|no such container|open status file)()"), NotFound, "the runtime does not know the container%.0s"},
	{regexp.MustCompile("(?i)(container not running|process not running|no such process|is not running|cannot signal|not in running state|container is in stopped|stopped state)"), NotRunning, "the container is not running%.0s"},
	{regexp.MustCompile(`(?i)(container init was OOM-killed|out of memory|memory\.limit_in_bytes|memory limit too low|memory cgroup)`), OutOfMemory, "the memory limit is too small for a container to start (%s)"},
}

// Classify makes an Error of what runtime printed when its subcommand op failed.
func Classify(runtime, op, stderr string) *Error {
	text := Clean(stderr)
	e := &Error{Op: op, Runtime: runtime, Message: fmt.Sprintf("%s %s failed: %s", runtime, op, text)}
	if text == "" {
		e.Message = fmt.Sprintf("%s %s failed and said nothing", runtime, op)
		return e
	}
	for _, p := range patterns {
		m := p.re.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		var what string
		for _, g := range m[1:] {
			if g != "" {
				what = g
				break
			}
		}
		e.Kind = p.kind
		e.Message = fmt.Sprintf(p.say, quote(what))
		return e
	}
	return e
}

var (
	logrusMessage = regexp.MustCompile(`level=(?:error|fatal) msg="((?:[^"\\]|\\.)*)"`)
	crunStamp     = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\S+Z?: `)
)

// Clean takes the runtime's last error out of what it printed, in text or JSON
// log form, without its time stamps and the names of its inner steps.
func Clean(stderr string) string {
	var last string
	for _, line := range strings.Split(strings.TrimSpace(stderr), "\n") {
		line = strings.TrimSpace(line)
		var entry struct{ Level, Msg string }
		switch {
		case strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &entry) == nil:
			if entry.Level == "error" || entry.Level == "fatal" || entry.Level == "" {
				last = entry.Msg
			}
			continue
		case strings.Contains(line, "level=warning") || strings.Contains(line, "level=debug") || strings.Contains(line, "level=info"):
			continue
		}
		if m := logrusMessage.FindStringSubmatch(line); m != nil {
			if s, err := strconv.Unquote(`"` + m[1] + `"`); err == nil {
				line = s
			} else {
				line = m[1]
			}
		}
		line = crunStamp.ReplaceAllString(line, "")
		if line != "" {
			last = line
		}
	}
	for _, noise := range []string{"[error]: ", "error: ", "runc create failed: ", "unable to start container process: ", "container_linux.go:", "OCI runtime error: "} {
		last = strings.TrimPrefix(last, noise)
	}
	if len(last) > 1024 {
		last = last[:1024] + "..."
	}
	return strings.ToValidUTF8(strings.TrimSpace(last), "?")
}

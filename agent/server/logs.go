package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// logQuery is what a request asks of a log, in the kubelet's parameters.
type logQuery struct {
	LogOptions
	previous       bool
	stdout, stderr bool
}

func parseLogQuery(q url.Values, now time.Time) (logQuery, error) {
	var wrong error
	blame := func(key, expected string) {
		if wrong == nil {
			wrong = refuse(http.StatusBadRequest, "%s=%q: expected %s", key, q.Get(key), expected)
		}
	}
	flag := func(key string) bool {
		v, err := strconv.ParseBool(q.Get(key))
		if err != nil && q.Get(key) != "" {
			blame(key, "true or false")
		}
		return v
	}
	number := func(key string, absent int64) int64 {
		if q.Get(key) == "" {
			return absent
		}
		n, err := strconv.ParseInt(q.Get(key), 10, 64)
		if err != nil || n < 0 {
			blame(key, "a whole number, 0 or more")
		}
		return n
	}
	out := logQuery{previous: flag("previous"), stdout: true, stderr: true, LogOptions: LogOptions{
		Follow: flag("follow"), Timestamps: flag("timestamps"), Tail: number("tailLines", -1), LimitBytes: number("limitBytes", 0),
	}}
	const longest = int64(1<<63-1) / int64(time.Second)
	if s := number("sinceSeconds", -1); s >= 0 {
		out.Since = now.Add(-time.Duration(min(s, longest)) * time.Second)
	}
	if text := q.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			blame("sinceTime", "a time like 2006-01-02T15:04:05Z")
		} else if !out.Since.IsZero() {
			blame("sinceTime", "either sinceTime or sinceSeconds, not both")
		}
		out.Since = at
	}
	switch q.Get("stream") {
	case "", "All":
	case "Stdout":
		out.stderr = false
	case "Stderr":
		out.stdout = false
	default:
		blame("stream", "All, Stdout or Stderr")
	}
	return out, wrong
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	q, err := parseLogQuery(r.URL.Query(), time.Now())
	if err != nil {
		s.fail(w, err)
		return
	}
	if s.config.Logs == nil {
		s.fail(w, refuse(http.StatusNotImplemented, "this agent cannot read container logs"))
		return
	}
	snap, ok := s.find(w, r)
	if !ok {
		return
	}
	c, err := logged(snap, r.PathValue("c"), q.previous)
	if err != nil {
		s.fail(w, err)
		return
	}
	q.Ended = func() bool { return s.ended(snap, c.ID) }
	s.copyLog(w, r, c.LogPath, q)
}

// copyLog answers with a log. What goes wrong before its first byte is answered
// as an error; afterwards the answer is broken off, so that the client notices.
func (s *Server) copyLog(w http.ResponseWriter, r *http.Request, path string, q logQuery) {
	ctx, end := stream(r)
	defer end()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := &text{out: w, control: http.NewResponseController(w), each: q.Follow}
	if q.Follow {
		if err := out.flush(); err != nil {
			return // the client has left
		}
	}
	stdout, stderr := io.Writer(out), io.Writer(out)
	if !q.stdout {
		stdout = nil
	}
	if !q.stderr {
		stderr = nil
	}
	err := s.config.Logs.Logs(ctx, path, q.LogOptions, stdout, stderr)
	if err == nil || ctx.Err() != nil {
		return
	}
	if out.begun {
		s.config.Log.Warn("reading a container log failed", "path", path, "err", err)
		panic(http.ErrAbortHandler)
	}
	w.Header().Del("Content-Type")
	s.fail(w, err)
}

// text passes a log on.
type text struct {
	out     io.Writer
	control *http.ResponseController
	each    bool // each write is flushed
	begun   bool
}

func (t *text) Write(b []byte) (int, error) {
	t.begun = true
	if err := patience(t.control); err != nil {
		return 0, err
	}
	n, err := t.out.Write(b)
	if err == nil && t.each {
		err = t.control.Flush()
	}
	return n, err
}

func (t *text) flush() error {
	t.begun = true
	return errors.Join(patience(t.control), t.control.Flush())
}

// logged returns the instance whose log is asked for, or says why there is
// none. A container that waits to be started again shows the log of the
// instance that ended last, with or without previous, as kubectl logs does.
func logged(s pod.Snapshot, name string, previous bool) (pod.Container, error) {
	p := s.Desired.Pod
	if err := hasContainer(p, name); err != nil {
		return pod.Container{}, err
	}
	var started []pod.Container
	for _, c := range s.Observed.Containers {
		if string(c.Name) == name && c.State != pod.Created && c.LogPath != "" {
			started = append(started, c)
		}
	}
	slices.SortStableFunc(started, func(a, b pod.Container) int { return int(int64(b.Attempt) - int64(a.Attempt)) })
	st, _ := find(&s.Status, name)
	if previous && st.State.Waiting == nil && len(started) > 0 {
		started = started[1:]
	}
	if len(started) > 0 {
		return started[0], nil
	}
	if previous {
		return pod.Container{}, refuse(http.StatusBadRequest, "container %q in pod %s/%s has no previous instance: it has not been restarted, or what it left is gone", name, p.Namespace, p.Name)
	}
	return pod.Container{}, refuse(http.StatusBadRequest, "container %q in pod %s/%s has no log yet: %s", name, p.Namespace, p.Name, waits(s, st))
}

// waits says why a container is not running.
func waits(s pod.Snapshot, st v1.ContainerStatus) string {
	why := "it has not been started"
	if w := st.State.Waiting; w != nil && w.Reason != "" {
		why = strings.TrimSuffix("it waits ("+w.Reason+": "+w.Message, ": ") + ")"
	} else if t := st.State.Terminated; t != nil {
		why = "it has ended (" + ended(t) + ")"
	}
	if e := s.Explanation; !e.Well && e.Cause != "" {
		why += ". " + e.Cause
		if e.Next != "" {
			why += " " + e.Next
		}
	}
	return why
}

func find(s *v1.PodStatus, name string) (v1.ContainerStatus, bool) {
	for _, st := range statuses(s) {
		if st.Name == name {
			return st, true
		}
	}
	return v1.ContainerStatus{}, false
}

// hasContainer says which containers p has, if it has none of that name.
func hasContainer(p *v1.Pod, name string) error {
	var names []string
	for _, c := range p.Spec.InitContainers {
		names = append(names, c.Name)
	}
	for _, c := range p.Spec.Containers {
		names = append(names, c.Name)
	}
	for _, c := range p.Spec.EphemeralContainers {
		names = append(names, c.Name)
	}
	if slices.Contains(names, name) {
		return nil
	}
	has := ""
	if len(names) > 0 {
		has = fmt.Sprintf("; it has %s", strings.Join(names, ", "))
	}
	return refuse(http.StatusNotFound, "pod %s/%s has no container %q%s", p.Namespace, p.Name, name, has)
}

// ended says that an instance of a pod writes no more.
func (s *Server) ended(then pod.Snapshot, id pod.ContainerID) bool {
	now, ok := s.config.Pods.Get(then.Desired.Pod.Namespace, then.Desired.Pod.Name)
	if !ok || now.UID != then.UID {
		return true
	}
	for _, c := range now.Observed.Containers {
		if c.ID == id {
			return c.State == pod.Exited
		}
	}
	return true
}

package server

import (
	"context"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/pod"
)

// running returns the snapshot of the pod and the ID of the running instance of
// the container that r's path names, or answers why there is none.
func (s *Server) running(w http.ResponseWriter, r *http.Request) (pod.ContainerID, bool) {
	snap, ok := s.streamable(w, r)
	if !ok {
		return "", false
	}
	name, p := r.PathValue("c"), snap.Desired.Pod
	if err := hasContainer(p, name); err != nil {
		s.fail(w, err)
		return "", false
	}
	for _, c := range snap.Observed.Containers {
		if string(c.Name) == name && c.State == pod.Running {
			return c.ID, true
		}
	}
	st, _ := find(&snap.Status, name)
	s.fail(w, refuse(http.StatusConflict, "container %q in pod %s/%s is not running: %s", name, p.Namespace, p.Name, waits(snap, st)))
	return "", false
}

// streamable returns the pod that r's path names, if there are streams at all.
func (s *Server) streamable(w http.ResponseWriter, r *http.Request) (pod.Snapshot, bool) {
	if s.config.Streams == nil {
		s.fail(w, refuse(http.StatusNotImplemented, "this agent's container runtime offers no exec, attach or port-forward"))
		return pod.Snapshot{}, false
	}
	return s.find(w, r)
}

// wanted are the streams that r asks for, in the kubelet's parameters.
type wanted struct{ in, out, err, tty bool }

func streams(r *http.Request) (q wanted, err error) {
	for name, to := range map[string]*bool{"input": &q.in, "output": &q.out, "error": &q.err, "tty": &q.tty} {
		if *to, err = truth(r, name); err != nil {
			return q, err
		}
	}
	q.err = q.err && !q.tty // a terminal has no stderr of its own
	if !q.in && !q.out && !q.err {
		return q, refuse(http.StatusBadRequest, "ask for at least one of input, output and error")
	}
	return q, nil
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	q, err := streams(r)
	command := r.URL.Query()["command"]
	if err == nil && len(command) == 0 {
		err = refuse(http.StatusBadRequest, "name a command to run")
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	if id, ok := s.running(w, r); ok {
		ctx, end := stream(r)
		defer end()
		s.config.Streams.ServeExec(w, r.WithContext(ctx), &runtimeapi.ExecRequest{
			ContainerId: string(id), Cmd: command, Tty: q.tty, Stdin: q.in, Stdout: q.out, Stderr: q.err,
		})
	}
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	q, err := streams(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	if id, ok := s.running(w, r); ok {
		ctx, end := stream(r)
		defer end()
		s.config.Streams.ServeAttach(w, r.WithContext(ctx), &runtimeapi.AttachRequest{
			ContainerId: string(id), Tty: q.tty, Stdin: q.in, Stdout: q.out, Stderr: q.err,
		})
	}
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	q := &runtimeapi.PortForwardRequest{}
	for _, text := range r.URL.Query()["port"] {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			s.fail(w, refuse(http.StatusBadRequest, "port=%q: expected a number from 1 to 65535", text))
			return
		}
		q.Port = append(q.Port, int32(n))
	}
	snap, ok := s.streamable(w, r)
	if !ok {
		return
	}
	for _, b := range snap.Observed.Sandboxes {
		if b.Ready {
			q.PodSandboxId = string(b.ID)
			ctx, end := stream(r)
			defer end()
			s.config.Streams.ServePortForward(w, r.WithContext(ctx), q)
			return
		}
	}
	p := snap.Desired.Pod
	s.fail(w, refuse(http.StatusConflict, "pod %s/%s has no network to forward to: %s", p.Namespace, p.Name, waits(snap, v1.ContainerStatus{})))
}

// CRIStreams is the part of a CRI runtime that gives URLs for streams.
type CRIStreams interface {
	Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// Forward returns Streams over an external runtime: it asks for a URL and
// passes the connection on to it.
func Forward(c CRIStreams) Streams { return forward{c} }

type forward struct{ cri CRIStreams }

func (f forward) ServeExec(w http.ResponseWriter, r *http.Request, q *runtimeapi.ExecRequest) {
	a, err := f.cri.Exec(r.Context(), q)
	passOn(w, r, a.GetUrl(), err)
}

func (f forward) ServeAttach(w http.ResponseWriter, r *http.Request, q *runtimeapi.AttachRequest) {
	a, err := f.cri.Attach(r.Context(), q)
	passOn(w, r, a.GetUrl(), err)
}

func (f forward) ServePortForward(w http.ResponseWriter, r *http.Request, q *runtimeapi.PortForwardRequest) {
	a, err := f.cri.PortForward(r.Context(), q)
	passOn(w, r, a.GetUrl(), err)
}

func passOn(w http.ResponseWriter, r *http.Request, to string, err error) {
	if err != nil {
		answerStatus(w, &pod.Error{Op: "open a stream in the container runtime", Kind: pod.Unavailable, Err: err})
		return
	}
	u, err := url.Parse(to)
	if err != nil || u.Host == "" {
		answerStatus(w, refuse(http.StatusServiceUnavailable, "the container runtime answered with an address that is no URL"))
		return
	}
	p := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.Out.URL, p.Out.Host = u, u.Host },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			answerStatus(w, refuse(http.StatusServiceUnavailable, "the container runtime's streaming server does not answer: %v", err))
		},
	}
	p.ServeHTTP(w, r)
}

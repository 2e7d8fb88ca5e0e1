package stream

import (
	"net/http"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ServeExec upgrades r and runs a command for it. It returns when the command
// has ended or the client has left; the command does not outlive either.
func (s *Server) ServeExec(w http.ResponseWriter, r *http.Request, q *runtimeapi.ExecRequest) {
	l := newLine(w, r)
	defer l.end()
	c, err := s.open(l, q)
	if err != nil {
		s.cfg.Log.Debug("exec: no session", "container", q.GetContainerId(), "err", err)
		return
	}
	code, err := s.cfg.Runtime.Exec(l.r.Context(), q.GetContainerId(), q.GetCmd(), c.streams())
	c.end(code, err)
}

// ServeAttach upgrades r and connects it to a container's own streams.
func (s *Server) ServeAttach(w http.ResponseWriter, r *http.Request, q *runtimeapi.AttachRequest) {
	l := newLine(w, r)
	defer l.end()
	c, err := s.open(l, q)
	if err != nil {
		s.cfg.Log.Debug("attach: no session", "container", q.GetContainerId(), "err", err)
		return
	}
	c.end(0, s.cfg.Runtime.Attach(l.r.Context(), q.GetContainerId(), c.streams()))
}

package server

import (
	"io"
	"net/http"
)

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok") // the client may have left
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, s.config.Version())
}

func (s *Server) audit(w http.ResponseWriter, r *http.Request) {
	if s.config.Audit == nil {
		s.fail(w, refuse(http.StatusNotImplemented, "this agent's container runtime offers no audit"))
		return
	}
	leaks, err := s.config.Audit(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, map[string][]Leak{"leaks": append([]Leak{}, leaks...)})
}

package server

import "net/http"

// NewWaiting returns a Server that stands in for one whose agent has nothing to
// answer from yet: it says who it is, and to all else why it waits, in the words
// of why. Of c, Version, Listening and Log are used.
func NewWaiting(c Config, why func() string) *Server {
	s := &Server{config: c}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /version", s.version)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		s.fail(w, refuse(http.StatusServiceUnavailable, "%s", why()))
	})
	s.handler = s.guarded(mux)
	return s
}

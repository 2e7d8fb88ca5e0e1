package server

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestWaiting: an agent that waits says who it is, and to everything else why.
func TestWaiting(t *testing.T) {
	s := NewWaiting(Config{Version: func() Version { return Version{Berth: "v9"} }, Log: slog.New(slog.DiscardHandler)}, func() string { return "it waits for a thing" })
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/healthz": {http.StatusOK, "ok"}, "/version": {http.StatusOK, "v9"},
		"/pods": {http.StatusServiceUnavailable, "it waits for a thing"}, "/berth/v1/why/default/p": {http.StatusServiceUnavailable, "it waits for a thing"},
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want.code || !strings.Contains(w.Body.String(), want.text) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

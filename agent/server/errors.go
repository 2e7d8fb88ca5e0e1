package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

// refusal is an error with the HTTP code it is answered with.
type refusal struct {
	code    int
	message string
}

func (e *refusal) Error() string { return e.message }

func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

var codes = map[pod.Kind]int{
	pod.Internal:    http.StatusInternalServerError,
	pod.Invalid:     http.StatusBadRequest,
	pod.NotFound:    http.StatusNotFound,
	pod.Unavailable: http.StatusServiceUnavailable,
	pod.Denied:      http.StatusForbidden,
	pod.Exhausted:   http.StatusInsufficientStorage,
	pod.Timeout:     http.StatusGatewayTimeout,
	pod.Corrupt:     http.StatusInternalServerError,
	pod.Canceled:    http.StatusServiceUnavailable,
}

var reasons = map[int]metav1.StatusReason{
	http.StatusBadRequest:            metav1.StatusReasonBadRequest,
	http.StatusForbidden:             metav1.StatusReasonForbidden,
	http.StatusNotFound:              metav1.StatusReasonNotFound,
	http.StatusConflict:              metav1.StatusReasonConflict,
	http.StatusRequestEntityTooLarge: metav1.StatusReasonRequestEntityTooLarge,
	http.StatusUnprocessableEntity:   metav1.StatusReasonInvalid,
	http.StatusNotImplemented:        metav1.StatusReasonMethodNotAllowed,
	http.StatusServiceUnavailable:    metav1.StatusReasonServiceUnavailable,
	http.StatusGatewayTimeout:        metav1.StatusReasonTimeout,
}

// status makes the answer that err stands for.
func status(err error) metav1.Status {
	code := http.StatusInternalServerError
	var r *refusal
	var e *pod.Error
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &r):
		code = r.code
	case errors.As(err, &large):
		code, err = http.StatusRequestEntityTooLarge, fmt.Errorf("the request is larger than %d bytes", large.Limit)
	case errors.As(err, &e):
		code = codes[e.Kind]
	}
	reason, ok := reasons[code]
	if !ok {
		reason = metav1.StatusReasonInternalError
	}
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Message: err.Error(), Reason: reason, Code: int32(code),
	}
}

// fail answers with err, if nothing has been answered yet.
func (s *Server) fail(w http.ResponseWriter, err error) { answerStatus(w, err) }

func answerStatus(w http.ResponseWriter, err error) {
	st := status(err)
	body, err := json.Marshal(st)
	if err != nil {
		body = []byte(`{"kind":"Status","apiVersion":"v1","status":"Failure"}`) // a Status of strings always is JSON
	}
	write(w, int(st.Code), body)
}

// answer answers with v in JSON.
func (s *Server) answer(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		s.config.Log.Error("an answer cannot be written as JSON", "err", err)
		answerStatus(w, fmt.Errorf("the answer cannot be written as JSON: %w", err))
		return
	}
	write(w, code, body)
}

func write(w http.ResponseWriter, code int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the client may have left
}

// lines writes one JSON object a line and has each flushed at once. A client
// that takes no line for writeTime is given up.
type lines struct {
	out     io.Writer
	control *http.ResponseController
}

func newLines(w http.ResponseWriter) lines {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	return lines{w, http.NewResponseController(w)}
}

func (l lines) put(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := patience(l.control); err != nil {
		return err
	}
	if _, err := l.out.Write(append(body, '\n')); err != nil {
		return err
	}
	return l.control.Flush()
}

// patience gives the client writeTime from now. What is not a connection (in tests) waits as it likes.
func patience(c *http.ResponseController) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// body reads a bounded body within bodyTime.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	c := http.NewResponseController(w)
	if err := c.SetReadDeadline(time.Now().Add(bodyTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, err
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, fmt.Errorf("read the request's body: %w", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, err
	}
	return b, nil
}

// truth reads a yes-or-no parameter.
func truth(r *http.Request, name string) (bool, error) {
	switch v := r.URL.Query().Get(name); v {
	case "", "0", "false":
		return false, nil
	case "1", "true":
		return true, nil
	default:
		return false, refuse(http.StatusBadRequest, "%s=%q: expected 1, true, 0 or false", name, v)
	}
}

// begin sends the header, so that the client knows that it is being served.
func (l lines) begin() error {
	if err := patience(l.control); err != nil {
		return err
	}
	return l.control.Flush()
}

package image

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
)

// statusError is an answer of a registry that is none.
type statusError struct {
	host   string
	status int
	reason string // what the registry says of it
}

// statusOf reads an answer that tells of a failure, and closes it.
func statusOf(resp *http.Response) error {
	e := &statusError{status: resp.StatusCode}
	if resp.Request != nil {
		e.host = resp.Request.URL.Host
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // what came of it will do
	drain(resp)
	var said struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &said) == nil && len(said.Errors) > 0 {
		e.reason = printable(said.Errors[0].Code + ": " + said.Errors[0].Message)
	}
	return e
}

// printable is at most 200 characters of text from outside, on one line.
func printable(s string) string {
	out := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
	return strings.TrimSpace(string(out[:min(200, len(out))]))
}

// Error tells status and reason.
func (e *statusError) Error() string {
	text := fmt.Sprintf("%s answers %d %s", e.host, e.status, http.StatusText(e.status))
	if e.reason != "" {
		text += fmt.Sprintf(" (%s)", e.reason)
	}
	return text
}

// Is gives an answer its errdefs class.
func (e *statusError) Is(target error) bool {
	return target == errdefs.ErrNotFound && e.status == http.StatusNotFound
}

// passing tells whether the answer may be another a little later.
func (e *statusError) passing() bool {
	switch e.status {
	case http.StatusTooManyRequests, http.StatusRequestTimeout:
		return true
	}
	return e.status >= 500 && e.status != http.StatusNotImplemented
}

func statusCode(status int) Code {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return CodeUnauthorized
	case http.StatusNotFound:
		return CodeTagNotFound
	case http.StatusTooManyRequests:
		return CodeRateLimited
	}
	return CodeUnavailable
}

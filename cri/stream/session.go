package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/ociruntime"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The words of remotecommand's protocols.
const (
	streamType  = "streamType"
	typeError   = "error"
	typeStdin   = "stdin"
	typeStdout  = "stdout"
	typeStderr  = "stderr"
	typeResize  = "resize"
	reasonExit  = metav1.StatusReason("NonZeroExitCode")
	causeExit   = metav1.CauseType("ExitCode")
	maxResizing = 1 << 10 // bytes of one terminal size, far more than one has
)

// session is one client of exec or attach.
type session struct {
	in              io.Reader
	out, errOut     io.Writer
	sizes           io.Reader
	status          io.Writer
	structured      bool // the status is JSON, and success is told too
	tty             bool
	line            *line
	closeConnection func()
}

// open upgrades l to the streams that q asks for. Where it fails the client has
// been told, as far as it could be.
func (s *Server) open(l *line, q wanted) (*session, error) {
	if wsstream.IsWebSocketRequest(l.r) {
		return s.openWebSocket(l, q)
	}
	return s.openSPDY(l, q)
}

// streams are the client's ends, for the store.
func (c *session) streams() container.Streams {
	st := container.Streams{Stdin: c.in, Stdout: c.out, Stderr: c.errOut, Tty: c.tty}
	if c.sizes != nil {
		sizes := make(chan container.Size, 1)
		st.Resize = sizes
		c.line.work.Go(func() { resize(c.line.r.Context(), c.sizes, sizes) })
	}
	return st
}

// resize passes on terminal sizes until the client has no more.
func resize(ctx context.Context, from io.Reader, to chan<- container.Size) {
	limit := &io.LimitedReader{R: from}
	d := json.NewDecoder(limit)
	for {
		var sz struct{ Width, Height uint16 }
		limit.N = maxResizing
		if err := d.Decode(&sz); err != nil {
			io.Copy(io.Discard, from) // what nobody takes would hold up a WebSocket's other channels
			return
		}
		select {
		case to <- container.Size{Rows: sz.Height, Cols: sz.Width}:
		case <-ctx.Done():
			return
		}
	}
}

// end tells the client how its command ended, and closes its connection. A
// command that cannot be run ends as in a shell: with a sentence on its standard
// error, and 126 or 127.
func (c *session) end(code int32, err error) {
	var fault *ociruntime.Error
	if errors.As(err, &fault) && (fault.Kind == ociruntime.CommandNotFound || fault.Kind == ociruntime.CommandDenied) {
		if code = notFound; fault.Kind == ociruntime.CommandDenied {
			code = denied
		}
		err = c.complain(fault.Message)
	}
	status := metav1.Status{Status: metav1.StatusSuccess}
	switch {
	case err != nil:
		status = metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError,
			Message: err.Error(), Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Message: err.Error()}}}}
	case code != 0:
		status = metav1.Status{Status: metav1.StatusFailure, Reason: reasonExit,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %d", code),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: causeExit, Message: strconv.Itoa(int(code))}}}}
	}
	c.line.hurry()
	switch {
	case c.structured:
		if b, jerr := json.Marshal(status); jerr == nil {
			c.status.Write(b) // a client that has left hears nothing
		}
	case status.Status != metav1.StatusSuccess:
		io.WriteString(c.status, status.Message)
	}
	c.closeConnection()
}

// Exit codes of what cannot be run, as shells have them.
const denied, notFound = 126, 127

// complain writes a sentence where the command would have.
func (c *session) complain(what string) error {
	to := c.errOut
	if to == nil {
		to = c.out
	}
	if to == nil {
		return errors.New(what) // the status has to tell it
	}
	c.line.hurry()
	io.WriteString(to, what+"\r\n")
	return nil
}

var errNoStreams = errors.New("the client did not open the streams it had asked for in time")

package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// answerLimit bounds an answer that is read as a whole.
const answerLimit = 64 << 20

// Client talks to one agent. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client of the agent at socket. It does not connect yet.
func New(socket string) *Client {
	c := &Client{socket: socket}
	c.http = &http.Client{Transport: c.transport()}
	return c
}

func (c *Client) transport() *http.Transport {
	return &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", c.socket)
			if err != nil {
				return nil, c.dialError(err)
			}
			return conn, nil
		},
	}
}

// UnreachableError says that no agent answers at the socket.
type UnreachableError struct {
	message string
	err     error
}

func (e *UnreachableError) Error() string { return e.message }

func (e *UnreachableError) Unwrap() error { return e.err }

func (c *Client) dialError(err error) error {
	const start = "start it with `berth agent` or `systemctl start berth`"
	switch {
	case errors.Is(err, syscall.ENOENT):
		return &UnreachableError{fmt.Sprintf("berth agent is not running (no socket at %s): %s", c.socket, start), err}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &UnreachableError{fmt.Sprintf("berth agent is not running (nobody answers at %s): %s", c.socket, start), err}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return &UnreachableError{fmt.Sprintf("only root may talk to the agent at %s: run this command as root", c.socket), err}
	}
	return err
}

// StatusError is the agent's refusal.
type StatusError struct {
	metav1.Status
	body []byte
}

func (e *StatusError) Error() string { return e.Message }

// IsNotFound tells whether the agent said that there is no such thing.
func IsNotFound(err error) bool { return hasCode(err, http.StatusNotFound) }

// IsConflict tells whether the agent refused because of how the thing came to be.
func IsConflict(err error) bool { return hasCode(err, http.StatusConflict) }

func hasCode(err error, code int32) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == code
}

// do sends a request. The caller closes the answer's body, which is a success.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url(path, query).String(), body)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		var unreachable *UnreachableError
		if errors.As(err, &unreachable) {
			return nil, unreachable
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("the agent at %s does not answer: %w", c.socket, err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, readStatus(res)
}

func readStatus(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, answerLimit))
	if err != nil {
		return fmt.Errorf("reading the agent's answer: %w", err)
	}
	e := &StatusError{body: body}
	if json.Unmarshal(body, &e.Status) != nil || e.Message == "" {
		e.Message = strings.TrimSpace(string(body))
		if e.Message == "" {
			e.Message = "the agent answered " + res.Status
		}
	}
	e.Code = int32(res.StatusCode)
	return e
}

// url makes the address of path. The host is only a name: all connections go to the socket.
func (c *Client) url(path string, query url.Values) *url.URL {
	return &url.URL{Scheme: "http", Host: "berth", Path: path, RawQuery: query.Encode()}
}

// call sends a request and decodes the answer into out.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, out any) error {
	res, err := c.do(ctx, method, path, query, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, answerLimit)).Decode(out); err != nil {
		return fmt.Errorf("the agent's answer to %s %s is not understood (is it of another version? see `berth version`): %w", method, path, err)
	}
	return nil
}

// stream decodes one T after the other and gives each to each, until the agent
// ends the answer (nil), ctx ends, or each returns an error.
func stream[T any](res *http.Response, each func(T) error) error {
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	for {
		var t T
		if err := dec.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the agent's answer broke off (did the agent end? see `berth version`): %w", err)
		}
		if err := each(t); err != nil {
			return err
		}
	}
}

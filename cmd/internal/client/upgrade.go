package client

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Streams say what of a command's streams is wanted.
type Streams struct{ In, Out, Err, TTY bool }

func (s Streams) query() url.Values {
	q := url.Values{}
	for name, on := range map[string]bool{"input": s.In, "output": s.Out, "error": s.Err && !s.TTY, "tty": s.TTY} {
		if on {
			q.Set(name, "1")
		}
	}
	return q
}

// upgrader makes connections that begin as HTTP over the socket and go on as
// SPDY. client-go's WebSocket transport cannot be given a dialer, and over a
// local socket no proxy stands in SPDY's way.
func (c *Client) upgrader() (*spdy.SpdyRoundTripper, error) {
	return spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{UpgradeTransport: c.transport(), PingPeriod: 5 * time.Second})
}

// Exec prepares command in a container.
func (c *Client) Exec(key PodKey, container string, command []string, s Streams) (remotecommand.Executor, error) {
	q := s.query()
	q["command"] = command
	return c.executor(key.path("/exec/")+"/"+container, q)
}

// Attach prepares to join the streams of a container's first process.
func (c *Client) Attach(key PodKey, container string, s Streams) (remotecommand.Executor, error) {
	return c.executor(key.path("/attach/")+"/"+container, s.query())
}

func (c *Client) executor(path string, q url.Values) (remotecommand.Executor, error) {
	rt, err := c.upgrader()
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForTransports(rt, clientspdy.NewUpgraderForStreaming(rt), http.MethodPost, c.url(path, q))
}

// Forward prepares connections to ports of a pod.
func (c *Client) Forward(key PodKey, ports []int) (httpstream.Dialer, error) {
	rt, err := c.upgrader()
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	for _, p := range ports {
		q.Add("port", strconv.Itoa(p))
	}
	return clientspdy.NewDialerForStreaming(clientspdy.NewUpgraderForStreaming(rt), &http.Client{Transport: rt}, http.MethodPost, c.url(key.path("/portForward/"), q)), nil
}

package client

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	v1 "k8s.io/api/core/v1"
)

// AddEphemeral adds an ephemeral container to a running pod, for good. It returns
// once the agent has it on disk; the container starts soon after.
func (c *Client) AddEphemeral(ctx context.Context, key PodKey, e v1.EphemeralContainer) error {
	return c.send(ctx, http.MethodPost, key.path("/berth/v1/pods/")+"/ephemeralcontainers", e)
}

// SetCondition sets a condition of a pod that a readiness gate waits for.
func (c *Client) SetCondition(ctx context.Context, key PodKey, condition v1.PodCondition) error {
	return c.send(ctx, http.MethodPut, key.path("/berth/v1/pods/")+"/conditions", condition)
}

// send sends what as JSON.
func (c *Client) send(ctx context.Context, method, path string, what any) error {
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	res, err := c.do(ctx, method, path, nil, bytes.NewReader(body))
	if err != nil {
		return err
	}
	return res.Body.Close()
}

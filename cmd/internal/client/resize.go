package client

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/berthd/berth/agent/server"
)

// Resize asks for other resources for a running pod, and returns the generation
// that the pod has with them once the agent has that on disk. What becomes of it
// is told by the pod's conditions.
func (c *Client) Resize(ctx context.Context, key PodKey, patch server.ResizePatch) (int64, error) {
	body, err := json.Marshal(patch)
	if err != nil {
		return 0, err
	}
	res, err := c.do(ctx, http.MethodPut, key.path("/berth/v1/pods/")+"/resize", nil, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var out struct {
		Generation int64 `json:"generation"`
	}
	return out.Generation, json.NewDecoder(io.LimitReader(res.Body, answerLimit)).Decode(&out)
}

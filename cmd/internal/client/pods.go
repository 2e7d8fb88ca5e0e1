package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
)

// PodKey names a pod.
type PodKey struct{ Namespace, Name string }

func (k PodKey) String() string { return k.Namespace + "/" + k.Name }

func (k PodKey) path(prefix string) string { return prefix + k.Namespace + "/" + k.Name }

func namespaced(namespace string) url.Values {
	q := url.Values{}
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	return q
}

// Version asks the agent what it is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var out Version
	return out, c.call(ctx, http.MethodGet, "/version", nil, &out)
}

// Pods lists the pods of namespace, of all if it is empty.
func (c *Client) Pods(ctx context.Context, namespace string) (v1.PodList, error) {
	var out v1.PodList
	return out, c.call(ctx, http.MethodGet, "/pods", namespaced(namespace), &out)
}

// Pod returns one pod; IsNotFound if there is none.
func (c *Client) Pod(ctx context.Context, key PodKey) (PodDetail, error) {
	var out PodDetail
	return out, c.call(ctx, http.MethodGet, key.path("/berth/v1/pods/"), nil, &out)
}

// Why explains where a pod stands.
func (c *Client) Why(ctx context.Context, key PodKey) (Explanation, error) {
	var out Explanation
	return out, c.call(ctx, http.MethodGet, key.path("/berth/v1/why/"), nil, &out)
}

// Watch gives each change of the namespace's pods to each, the present ones
// first, until ctx ends or each returns an error.
func (c *Client) Watch(ctx context.Context, namespace string, each func(WatchEvent) error) error {
	res, err := c.do(ctx, http.MethodGet, "/berth/v1/watch", namespaced(namespace), nil)
	if err != nil {
		return err
	}
	if err := stream(res, each); err != nil {
		return err
	}
	return errors.New("the agent ended the watch (did it stop? see `berth version`)")
}

// Events lists events of a pod, or of all pods of the namespace if pod is empty.
func (c *Client) Events(ctx context.Context, namespace, pod string) (v1.EventList, error) {
	q := namespaced(namespace)
	if pod != "" {
		q.Set("pod", pod)
	}
	var out v1.EventList
	return out, c.call(ctx, http.MethodGet, "/berth/v1/events", q, &out)
}

// WatchEvents gives events to each as they come, the present ones first.
func (c *Client) WatchEvents(ctx context.Context, namespace, pod string, each func(v1.Event) error) error {
	q := namespaced(namespace)
	q.Set("watch", "1")
	if pod != "" {
		q.Set("pod", pod)
	}
	res, err := c.do(ctx, http.MethodGet, "/berth/v1/events", q, nil)
	if err != nil {
		return err
	}
	return stream(res, each)
}

// Apply gives manifests to the agent. Problems is not empty if some documents
// were refused; that alone is no error.
func (c *Client) Apply(ctx context.Context, manifests []byte) (Applied, error) {
	var out Applied
	res, err := c.do(ctx, http.MethodPost, "/berth/v1/apply", nil, bytes.NewReader(manifests))
	if err != nil {
		var refused *StatusError
		if errors.As(err, &refused) && json.Unmarshal(refused.body, &out) == nil && len(out.Problems) > 0 {
			return out, nil
		}
		return Applied{}, err
	}
	defer res.Body.Close()
	return out, json.NewDecoder(io.LimitReader(res.Body, answerLimit)).Decode(&out)
}

// StopOptions say how a pod is to end.
type StopOptions struct {
	Grace *time.Duration // nil: the pod's own
	Force bool           // also a pod of a manifest, which then stays away until its manifest changes
}

// Stop asks the agent to end a pod and does not wait. IsConflict if the pod
// comes from a manifest and Force is not set.
func (c *Client) Stop(ctx context.Context, key PodKey, o StopOptions) error {
	q := url.Values{}
	if o.Grace != nil {
		q.Set("grace", strconv.Itoa(int((*o.Grace+time.Second-1)/time.Second)))
	}
	if o.Force {
		q.Set("force", "1")
	}
	return c.call(ctx, http.MethodPost, key.path("/berth/v1/stop/"), q, nil)
}

// Logs opens the log of a container. The caller closes it.
func (c *Client) Logs(ctx context.Context, key PodKey, container string, o v1.PodLogOptions) (io.ReadCloser, error) {
	q := url.Values{}
	set := func(name string, on bool, value string) {
		if on {
			q.Set(name, value)
		}
	}
	set("follow", o.Follow, "true")
	set("previous", o.Previous, "true")
	set("timestamps", o.Timestamps, "true")
	if o.SinceSeconds != nil {
		q.Set("sinceSeconds", strconv.FormatInt(*o.SinceSeconds, 10))
	}
	if o.SinceTime != nil {
		q.Set("sinceTime", o.SinceTime.UTC().Format(time.RFC3339Nano))
	}
	if o.TailLines != nil {
		q.Set("tailLines", strconv.FormatInt(*o.TailLines, 10))
	}
	if o.LimitBytes != nil {
		q.Set("limitBytes", strconv.FormatInt(*o.LimitBytes, 10))
	}
	res, err := c.do(ctx, http.MethodGet, key.path("/containerLogs/")+"/"+container, q, nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	hookAgent    = "kube-lifecycle/1.36"
	minStopGrace = 2 * time.Second
	maxHookText  = 1024
)

// postStart runs the hook of a started container. Upstream sets no limit to it:
// only the caller's.
func (r *Runtime) postStart(ctx context.Context, t *task) error {
	c := t.container()
	if c == nil || c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return nil
	}
	return fail(opPostStart, r.hook(ctx, t, c, c.Lifecycle.PostStart))
}

// preStop runs the hook within the grace; a hook that outlasts it has failed.
func (r *Runtime) preStop(ctx context.Context, t *task) error {
	c := t.container()
	if c == nil || c.Lifecycle == nil || c.Lifecycle.PreStop == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.action.Grace)
	defer cancel()
	return fail(opPreStop, r.hook(ctx, t, c, c.Lifecycle.PreStop))
}

// stopContainer runs the preStop hook, if it is asked to, and stops the
// container with what is left of the grace. A failed hook is told and delays
// nothing.
func (r *Runtime) stopContainer(ctx context.Context, t *task) error {
	began := time.Now()
	if t.action.PreStop {
		err := r.preStop(ctx, t)
		if ctx.Err() != nil {
			return fail(opStop, ctx.Err())
		}
		if err != nil {
			r.event(t, true, pod.FailedPreStopHook, "PreStopHook failed: "+err.Error())
			r.Log.Warn("preStop hook failed", "pod", t.pod.Namespace+"/"+t.pod.Name, "uid", t.uid, "container", t.action.Container, "err", err)
		}
	}
	left := max(t.action.Grace-time.Since(began), minStopGrace)
	seconds := int64((left + time.Second/2) / time.Second)
	ctx, cancel := context.WithTimeout(ctx, left+callTimeout)
	defer cancel()
	failpoint.Hit("agent/runtime/stop-container")
	_, err := r.CRI.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: string(t.action.ContainerID), Timeout: seconds})
	failpoint.Hit("agent/runtime/stop-container-done")
	if gone(err) {
		return nil
	}
	return fail(opStop, err)
}

func (r *Runtime) hook(ctx context.Context, t *task, c *v1.Container, h *v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		return r.execHook(ctx, t, h.Exec)
	case h.HTTPGet != nil:
		return r.httpHook(ctx, t, c, h.HTTPGet)
	case h.Sleep != nil:
		timer := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return &pod.Error{Op: "run hook", Kind: pod.Invalid, Err: errors.New("invalid handler: a hook is one of exec, httpGet and sleep")}
}

func (r *Runtime) execHook(ctx context.Context, t *task, e *v1.ExecAction) error {
	timeout := int64(0) // none
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(1, int64(time.Until(deadline)/time.Second))
	}
	failpoint.Hit("agent/runtime/exec-hook")
	resp, err := r.CRI.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: string(t.action.ContainerID), Cmd: e.Command, Timeout: timeout})
	failpoint.Hit("agent/runtime/exec-hook-done")
	if err != nil {
		return err
	}
	if resp.ExitCode == 0 {
		return nil
	}
	said := append(append([]byte{}, resp.Stdout[:min(len(resp.Stdout), maxHookText)]...), resp.Stderr[:min(len(resp.Stderr), maxHookText)]...)
	return fmt.Errorf("command '%s' exited with %d: %s", strings.Join(e.Command, " "), resp.ExitCode, strings.ToValidUTF8(strings.TrimSpace(string(said)), "\uFFFD"))
}

// httpHook asks the pod; what it answers does not matter, only that it does.
func (r *Runtime) httpHook(ctx context.Context, t *task, c *v1.Container, h *v1.HTTPGetAction) error {
	host := h.Host
	if host == "" {
		ips, _, err := r.podIPs(ctx, t)
		if err != nil {
			return err
		}
		if host = first((facts{pod: t.pod, podIPs: ips, node: r.cfg.Node}).ips()); host == "" {
			return errors.New("the pod has no address yet that the hook could be sent to")
		}
	}
	port, err := hookPort(h.Port, c)
	if err != nil {
		return err
	}
	scheme := "http"
	if h.Scheme != "" {
		scheme = strings.ToLower(string(h.Scheme))
	}
	path := "/" + strings.TrimPrefix(h.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, strconv.Itoa(port))+path, nil)
	if err != nil {
		return err
	}
	for _, header := range h.HTTPHeaders {
		if strings.EqualFold(header.Name, "host") {
			req.Host = header.Value
			continue
		}
		req.Header.Add(header.Name, header.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", hookAgent)
	}
	if accept, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if accept[0] == "" { // set to nothing: not sent
		req.Header.Del("Accept")
	}
	err = r.ask(req)
	if scheme == "https" && err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req = req.Clone(ctx)
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		if err = r.ask(req); err == nil {
			r.event(t, true, "LifecycleHTTPFallback", fmt.Sprintf("request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", req.URL.Host))
		}
	}
	return err
}

func (r *Runtime) ask(req *http.Request) error {
	failpoint.Hit("agent/runtime/http-hook")
	resp, err := r.hooks.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 10<<10) // the answer is of no interest
	return nil
}

// sameHost keeps a hook's request from being led elsewhere.
func sameHost(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 || req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	return nil
}

func hookPort(p intstr.IntOrString, c *v1.Container) (int, error) {
	port := p.IntValue()
	if p.Type == intstr.String {
		for _, one := range c.Ports {
			if one.Name == p.StrVal {
				port = int(one.ContainerPort)
			}
		}
	}
	if port < 1 || port > 65535 {
		return 0, &pod.Error{Op: "run hook", Kind: pod.Invalid, Err: fmt.Errorf("port %q of the hook is neither a port number nor the name of one of the container's ports", p.String())}
	}
	return port, nil
}

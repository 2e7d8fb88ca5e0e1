package cluster

import (
	"context"
	"strings"
	"testing"
	"time"
)

// A cluster answers, keeps what it was told over a restart of its API server,
// and lets only the right users in.
func TestCluster(t *testing.T) {
	c := New(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must := func(args ...string) string {
		t.Helper()
		out, err := c.Kubectl(ctx, "", args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	must("create", "deployment", "d", "--image=x")
	if err := c.await(ctx, 30*time.Second, "the deployment has a pod", "wait", "--for=create", "pod", "-l", "app=d", "--timeout=5s"); err != nil {
		t.Fatal(err)
	}
	node, err := c.Kubeconfig("system:node:n", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	if out := must("--kubeconfig="+node, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"); out != "system:node:n" {
		t.Errorf("the node's kubeconfig is that of %q", out)
	}
	if out, err := c.Kubectl(ctx, "", "--kubeconfig="+node, "get", "secrets", "-A"); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("a node may list secrets: %s %v", out, err)
	}
	c.APIServer.Kill()
	if err := c.APIServer.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.await(ctx, time.Minute, "the API server is back", "get", "--raw", "/readyz"); err != nil {
		t.Fatal(err)
	}
	must("get", "deployment", "d")
}

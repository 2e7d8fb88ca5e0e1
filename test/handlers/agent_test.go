package handlers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/node"
	v1 "k8s.io/api/core/v1"
)

const class = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: %[1]s}
handler: %[1]s
`

const manifest = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  %s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: docker.io/library/busybox:1.36, command: [sleep, "1000"]}
`

// A pod of a RuntimeClass whose handler misbehaves says so, and others run.
func TestWhy(t *testing.T) {
	a := start(t)
	bad := handlerOf("start:nothing")
	a.Place("class.yaml", fmt.Sprintf(class, bad))
	a.Place("pod.yaml", fmt.Sprintf(manifest, "unlucky", "runtimeClassName: "+bad))
	a.Place("other.yaml", fmt.Sprintf(manifest, "other", "hostNetwork: true"))
	a.Wait("other", 60*time.Second, node.Ready)
	a.Wait("unlucky", 60*time.Second, func(p *v1.Pod) error {
		if p.Status.Phase == v1.PodRunning && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Running != nil {
			return fmt.Errorf("it counts as running")
		}
		return nil
	})
	node.Eventually(t, 60*time.Second, func() error {
		out, err := a.Berth("why", "unlucky")
		if !strings.Contains(out, bad) || !strings.Contains(out, "says that it has started") {
			return fmt.Errorf("berth why tells neither the handler nor what it did: %v\n%s", err, out)
		}
		return nil
	})
	a.Unplace("pod.yaml")
	a.WaitGone("unlucky", 60*time.Second)
	a.Wait("other", 10*time.Second, node.Ready)
}

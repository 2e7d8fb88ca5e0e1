package kubelet

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/patience"
)

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: shop}}
  strategy: {rollingUpdate: {maxUnavailable: 1, maxSurge: 1}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: c
        image: ` + workloadImage + `
        imagePullPolicy: Never
        command: [/workload]
        env: [{name: VERSION, value: "1"}]
        ports: [{name: web, containerPort: 8080}]
        startupProbe: {exec: {command: [sh, -c, "busybox wget -qO- http://127.0.0.1:8080/healthz"]}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 5}
        readinessProbe: {httpGet: {path: /healthz, port: web}, periodSeconds: 1, timeoutSeconds: 5}
        livenessProbe: {grpc: {port: 9090}, periodSeconds: 2, failureThreshold: 5, timeoutSeconds: 5}
      - name: side
        image: ` + workloadImage + `
        imagePullPolicy: Never
        command: [/workload, -http, ":8081", -grpc, ":9091"]
        livenessProbe: {tcpSocket: {port: 8081}, periodSeconds: 2, failureThreshold: 5, timeoutSeconds: 5}
`

func (l *lab) deployment() {
	l.apply(deployment)
	rolled := func() { l.t.Helper(); l.kubectl("rollout", "status", "deployment/shop", "--timeout=100s") }
	rolled()
	versions := func(want string) {
		l.t.Helper()
		for _, pod := range strings.Fields(l.kubectl("get", "pods", "-l", "app=shop", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}")) {
			p, err := l.pod(pod)
			if err != nil || p.DeletionTimestamp != nil {
				continue // of the version before, on its way out
			}
			r, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + p.Status.PodIP + ":8080/name")
			if err != nil {
				l.t.Errorf("pod %s from the node: %v", pod, err)
				continue
			}
			body := make([]byte, 200)
			n, _ := r.Body.Read(body) // short, and compared
			r.Body.Close()
			if got := string(body[:n]); got != pod+" "+want+"\n" {
				l.t.Errorf("pod %s answers %q", pod, got)
			}
		}
	}
	versions("1")
	l.kubectl("set", "env", "deployment/shop", "-c", "c", "VERSION=2")
	rolled()
	versions("2")
	l.kubectl("rollout", "undo", "deployment/shop")
	rolled()
	l.remove("deployment", "shop")
}

func (l *lab) initAndSidecar() {
	c := func(name, script, more string) string {
		return fmt.Sprintf("  - {name: %s, image: %s, imagePullPolicy: Never, command: [sh, -c, %q], volumeMounts: [{name: s, mountPath: /s}]%s}\n", name, workloadImage, script, more)
	}
	l.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: ordered}\nspec:\n  restartPolicy: Never\n  volumes: [{name: s, emptyDir: {}}]\n  initContainers:\n" +
		c("first", "echo first >>/s/order", "") +
		c("side", "echo side >>/s/order; trap 'echo side ends >>/s/order; cat /s/order; exit 0' TERM; while :; do sleep 1 & wait $!; done", ", restartPolicy: Always, startupProbe: {exec: {command: [grep, side, /s/order]}, periodSeconds: 1}") +
		c("last", "echo last >>/s/order", "") +
		"  containers:\n" + c("main", "echo main >>/s/order; sleep 1; echo main ends >>/s/order", ""))
	l.ended("ordered", v1.PodSucceeded)
	l.expect("the order", l.kubectl("logs", "ordered", "-c", "side"), "first\nside\nlast\nmain\nmain ends\nside ends\n")
	l.remove("pod", "ordered")
}

func (l *lab) liveness() {
	l.apply(simple("sick", "echo life; trap 'exit 0' TERM; touch /tmp/well; sleep 2; rm /tmp/well; while :; do sleep 1 & wait $!; done",
		"livenessProbe: {exec: {command: [ls, /tmp/well]}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 5}", ""))
	p := l.wait("sick", 90*time.Second, func(p *v1.Pod) error {
		if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].RestartCount < 2 {
			return errors.New(statusText(p))
		}
		return nil
	})
	if p.Status.ContainerStatuses[0].LastTerminationState.Terminated == nil {
		l.t.Error("no last state")
	}
	l.expect("the previous log", l.kubectl("logs", "sick", "--previous"), "life\n")
	l.remove("pod", "sick")
	l.apply(simple("looping", "exit 4", "", ""))
	l.wait("looping", time.Minute, func(p *v1.Pod) error {
		if len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff" {
			if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last != nil && last.ExitCode == 4 {
				return nil
			}
		}
		return errors.New(statusText(p))
	})
	l.remove("pod", "looping")
}

func (l *lab) jobs() {
	job := "apiVersion: batch/v1\nkind: Job\nmetadata: {name: %s}\nspec:\n  backoffLimit: 0\n  completions: 2\n  parallelism: 2\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n" +
		"      - {name: c, image: %s, imagePullPolicy: Never, command: [sh, -c, %q]}\n"
	l.apply(fmt.Sprintf(job, "good", workloadImage, "echo done"))
	l.apply(fmt.Sprintf(job, "bad", workloadImage, "exit 1"))
	l.kubectl("wait", "--for=condition=complete", "job/good", "--timeout=90s")
	l.kubectl("wait", "--for=condition=failed", "job/bad", "--timeout=90s")
	l.remove("job", "good")
	l.remove("job", "bad")
}

func (l *lab) endings() {
	l.apply(simple("greedy", "exec tail /dev/zero", "resources: {limits: {memory: 24Mi}}", "restartPolicy: Never"))
	l.apply(simple("message", "echo why >/dev/termination-log; exit 9", "", "restartPolicy: Never"))
	l.apply(simple("fallback", "echo from the log; exit 9", "terminationMessagePolicy: FallbackToLogsOnError", "restartPolicy: Never"))
	l.apply(simple("nonesuch", "true", "", "restartPolicy: Never") + "    args: []\n")
	l.apply(strings.Replace(simple("missing", "true", "", "restartPolicy: Never"), "command: [sh, -c, \"true\"]", "command: [/nonesuch]", 1))
	for name, want := range map[string]struct {
		reason, message string
		code            int32
	}{
		"greedy": {"OOMKilled", "", 137}, "message": {"Error", "why\n", 9}, "fallback": {"Error", "from the log\n", 9}, "missing": {"", "/nonesuch", -1},
	} {
		p := l.ended(name, v1.PodFailed)
		s := p.Status.ContainerStatuses[0].State.Terminated
		if want.reason != "" && s.Reason != want.reason || want.code >= 0 && s.ExitCode != want.code || !strings.Contains(s.Message, want.message) {
			l.t.Errorf("pod %s ended with %+v", name, s)
		}
	}
	l.ended("nonesuch", v1.PodSucceeded)
	l.kubectl("delete", "pod", "greedy", "message", "fallback", "nonesuch", "missing", "--timeout=60s")
}

func (l *lab) hooks() {
	l.apply(simple("polite", "trap 'echo term; exit 0' TERM; while :; do sleep 1 & wait $!; done",
		"lifecycle: {postStart: {exec: {command: [sh, -c, echo begun >/proc/1/fd/1]}}, preStop: {exec: {command: [sh, -c, echo leaving >/proc/1/fd/1]}}}", ""))
	l.ready("polite")
	ctx := l.t.Context()
	follow := l.cluster.Command(ctx, "logs", "-f", "polite")
	out, err := follow.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		l.t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() {
		var b strings.Builder
		buffer := make([]byte, 4096)
		for {
			n, err := out.Read(buffer)
			b.Write(buffer[:n])
			if err != nil {
				break
			}
		}
		said <- b.String()
	}()
	time.Sleep(time.Second)
	l.remove("pod", "polite")
	text := <-said
	_ = follow.Wait()
	l.expect("the log", text, "begun\nleaving\nterm\n")
	stubborn := strings.Replace(simple("stubborn", "trap '' TERM; while :; do sleep 1; done", "", ""), "terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: 3", 1)
	l.apply(stubborn)
	l.ready("stubborn")
	began := time.Now()
	l.remove("pod", "stubborn")
	if took := time.Since(began); took < 3*time.Second || took > patience.For(25*time.Second) {
		l.t.Errorf("a pod with 3 s of grace that does not heed SIGTERM was gone after %v", took)
	}
}

func (l *lab) staticPod() {
	l.placeStatic("fixed", simple("fixed", forever, "", ""))
	name := "fixed-" + nodeName
	p := l.ready(name)
	if p.Annotations["kubernetes.io/config.mirror"] == "" {
		l.t.Errorf("it is no mirror pod: %v", p.Annotations)
	}
	l.expect("logs of a static pod", l.kubectl("logs", name), "up\n")
	l.dropStatic("fixed")
	for end := time.Now().Add(patience.For(time.Minute)); ; time.Sleep(300 * time.Millisecond) {
		if _, err := l.pod(name); err != nil {
			return
		}
		if time.Now().After(end) {
			l.t.Fatal("the mirror pod stays")
		}
	}
}

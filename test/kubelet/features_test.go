package kubelet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/cluster"
	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/patience"
	"github.com/berthd/berth/test/registry"
)

func restartedOnce(p *v1.Pod) error {
	if len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil {
		return nil
	}
	return errors.New(statusText(p))
}

const volumesPod = `apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {hello: world, other: thing}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {key: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {colour: blue}}
spec:
  terminationGracePeriodSeconds: 2
  volumes:
  - {name: words, configMap: {name: words}}
  - {name: hidden, secret: {secretName: hidden, defaultMode: 0400}}
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
  - name: about
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}
  - name: all
    projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 3600}}, {configMap: {name: words}}]}
  containers:
  - name: c
    image: ` + workloadImage + `
    imagePullPolicy: Never
    command: [sh, -c, "` + forever + `"]
    resources: {limits: {cpu: 250m, memory: 64Mi}}
    env:
    - {name: WORD, valueFrom: {configMapKeyRef: {name: words, key: hello}}}
    - {name: KEY, valueFrom: {secretKeyRef: {name: hidden, key: key}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    volumeMounts:
    - {name: words, mountPath: /words}
    - {name: words, mountPath: /one, subPath: hello}
    - {name: hidden, mountPath: /hidden, readOnly: true, recursiveReadOnly: IfPossible}
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
    - {name: about, mountPath: /about}
    - {name: all, mountPath: /all}
`

func (l *lab) volumes() {
	l.apply(volumesPod)
	p := l.ready("full")
	in := func(script string) string { l.t.Helper(); return l.kubectl("exec", "full", "--", "sh", "-c", script) }
	l.expect("environment", in("echo $WORD $KEY $IP $NODE"), "world sesame "+p.Status.PodIP+" "+nodeName)
	l.expect("files", in("cat /words/hello /one /hidden/key /about/cpu /all/other; echo; cat /about/labels"), "world", "sesame", "250", "thing", `colour="blue"`)
	l.expect("token", in("wc -c </all/token; ls /var/run/secrets/kubernetes.io/serviceaccount"), "ca.crt", "namespace", "token")
	l.expect("mounts", in("grep -E ' /(memory|hidden) ' /proc/mounts"), "/memory tmpfs", "/hidden tmpfs ro")
	l.expect("a secret is read-only", in("echo x >/hidden/key 2>&1 || echo refused"), "refused")
	in("echo kept >/disk/f; echo kept >/memory/f")
	_, _ = l.try("", "exec", "full", "--", "kill", "1") // takes the exec along, or not
	l.wait("full", time.Minute, restartedOnce)
	l.expect("emptyDir after a restart", in("cat /disk/f /memory/f"), "kept\nkept\n")
	l.kubectl("patch", "configmap", "words", "--type=merge", "-p", `{"data":{"hello":"moon"}}`)
	for end := time.Now().Add(patience.For(100 * time.Second)); ; time.Sleep(time.Second) {
		if strings.Contains(in("cat /words/hello"), "moon") {
			break
		}
		if time.Now().After(end) {
			l.t.Error("a ConfigMap's change does not arrive")
			break
		}
	}
	l.kubectl("delete", "pod/full", "configmap/words", "secret/hidden", "--timeout=60s")
}

func (l *lab) resize() {
	l.apply(simple("growing", forever, "resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}\nresizePolicy: [{resourceName: memory, restartPolicy: NotRequired}]", ""))
	l.ready("growing")
	limits := func() string {
		l.t.Helper()
		return l.kubectl("exec", "growing", "--", "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max")
	}
	l.expect("limits", limits(), "67108864\n20000")
	l.kubectl("patch", "pod", "growing", "--subresource=resize", "-p", `{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"150m","memory":"48Mi"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}`)
	p := l.wait("growing", time.Minute, func(p *v1.Pod) error {
		s := p.Status.ContainerStatuses[0]
		if s.Resources == nil || s.Resources.Limits.Memory().String() != "96Mi" || s.Resources.Limits.Cpu().String() != "300m" {
			return fmt.Errorf("resources %+v, conditions %+v", s.Resources, p.Status.Conditions)
		}
		return nil
	})
	if n := p.Status.ContainerStatuses[0].RestartCount; n != 0 {
		l.t.Errorf("the resize restarted the container %d times", n)
	}
	l.expect("limits after the resize", limits(), "100663296\n30000")
	l.remove("pod", "growing")

	l.apply(simple("whole", forever, "", "resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 128Mi}}"))
	l.ready("whole")
	l.kubectl("patch", "pod", "whole", "--subresource=resize", "-p", `{"spec":{"resources":{"requests":{"cpu":"150m","memory":"64Mi"},"limits":{"cpu":"400m","memory":"160Mi"}}}}`)
	l.wait("whole", time.Minute, func(p *v1.Pod) error {
		if p.Status.Resources == nil || p.Status.Resources.Limits.Cpu().String() != "400m" || p.Status.ContainerStatuses[0].RestartCount != 0 {
			return fmt.Errorf("resources %+v, conditions %+v", p.Status.Resources, p.Status.Conditions)
		}
		return nil
	})
	l.remove("pod", "whole")
}

func (l *lab) userNamespace() {
	l.apply(simple("foreign", forever, "volumeMounts: [{name: v, mountPath: /v}]", "hostUsers: false\nvolumes: [{name: v, emptyDir: {}}]"))
	l.ready("foreign")
	out := l.kubectl("exec", "foreign", "--", "sh", "-c", "id -u; cat /proc/self/uid_map; echo x >/v/f; stat -c %u /v/f")
	f := strings.Fields(out)
	if len(f) != 5 || f[0] != "0" || f[1] != "0" || f[2] == "0" || f[3] != "65536" || f[4] != "0" {
		l.t.Errorf("inside it is %q", out)
	}
	l.remove("pod", "foreign")
}

func (l *lab) imageVolume() {
	l.apply(simple("shelf", forever, "volumeMounts: [{name: i, mountPath: /i}, {name: i, mountPath: /bins, subPath: bin}]", "volumes: [{name: i, image: {reference: "+workloadImage+", pullPolicy: Never}}]"))
	l.ready("shelf")
	l.expect("the image", l.kubectl("exec", "shelf", "--", "sh", "-c", "ls /i /bins; touch /i/x 2>&1 || echo refused"), "workload", "busybox", "refused")
	l.remove("pod", "shelf")
}

func (l *lab) security() {
	l.apply(simple("strict", "id; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; touch /x 2>&1; echo "+forever+" | sh",
		"securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}",
		"securityContext: {runAsUser: 1234, runAsGroup: 2345, runAsNonRoot: true, fsGroup: 3456, supplementalGroups: [4567], supplementalGroupsPolicy: Strict, seccompProfile: {type: RuntimeDefault}, sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: \"80\"}]}\nhostname: inner\nsubdomain: sub\nhostAliases: [{ip: 192.0.2.77, hostnames: [alias]}]\ndnsConfig: {options: [{name: ndots, value: \"3\"}]}"))
	l.wait("strict", time.Minute, func(p *v1.Pod) error {
		out, err := l.try("", "logs", "strict")
		if err != nil || !strings.Contains(out, "Seccomp:") {
			return fmt.Errorf("%q %w", out, err)
		}
		return nil
	})
	l.expect("itself", l.kubectl("logs", "strict"), "uid=1234 gid=2345", "3456", "4567", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Read-only file system")
	l.remove("pod", "strict")
	l.apply(simple("rootless", "true", "securityContext: {runAsNonRoot: true}", "restartPolicy: Never"))
	l.wait("rootless", time.Minute, func(p *v1.Pod) error {
		if len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError" {
			return nil
		}
		return errors.New(statusText(p))
	})
	l.remove("pod", "rootless")
}

func (l *lab) hostNamespaces() {
	ports, err := cluster.FreePorts(2)
	if err != nil {
		l.t.Fatal(err)
	}
	l.apply(simple("hosted", "cat /proc/1/comm; "+forever, "", "hostNetwork: true\nhostPID: true"))
	l.apply(simple("shared", forever, "", "shareProcessNamespace: true") +
		fmt.Sprintf("  - name: other\n    image: %s\n    imagePullPolicy: Never\n    command: [sh, -c, %q]\n    ports: [{containerPort: 8080, hostPort: %d, hostIP: 127.0.0.1}]\n", workloadImage, "exec /workload", ports[0]))
	p := l.ready("hosted")
	if p.Status.PodIP != p.Status.HostIP {
		l.t.Errorf("a host network pod has address %s on a node of %s", p.Status.PodIP, p.Status.HostIP)
	}
	l.ready("shared")
	l.expect("processes of the pod", l.kubectl("exec", "shared", "-c", "c", "--", "ps"), "/workload", "berth-init")
	answered := false
	for end := time.Now().Add(patience.For(20 * time.Second)); !answered && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]), time.Second)
		if answered = err == nil; answered {
			c.Close()
		}
	}
	if !answered {
		l.t.Errorf("nobody answers at host port %d", ports[0])
	}
	l.kubectl("delete", "pod", "hosted", "shared", "--timeout=60s")
}

func (l *lab) pulls() {
	r := registry.Start(l.t)
	spec, err := image.BusyboxSpec()
	if err != nil {
		l.t.Fatal(err)
	}
	r.Push(l.t, "private/thing", "1", spec)
	r.Private("bob", "builder")
	if err := os.MkdirAll(filepath.Join(l.home, "certs.d", r.Address), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.home, "certs.d", r.Address, "hosts.toml"), []byte("server = \"http://"+r.Address+"\"\n"), 0o644); err != nil {
		l.t.Fatal(err)
	}
	l.kubectl("create", "secret", "docker-registry", "bob", "--docker-server="+r.Address, "--docker-username=bob", "--docker-password=builder")
	from := func(name, image, policy, spec string) string {
		pod := simple(name, forever, "", spec)
		return strings.Replace(strings.Replace(pod, "imagePullPolicy: Never", "imagePullPolicy: "+policy, 1), "image: "+workloadImage, "image: "+image, 1)
	}
	thing := r.Address + "/private/thing:1"
	l.apply(from("stranger", thing, "Always", ""))
	l.apply(from("absent", "docker.io/library/nonesuch:1", "Never", ""))
	waits := func(pod string, reasons ...string) {
		l.t.Helper()
		l.wait(pod, time.Minute, func(p *v1.Pod) error {
			for _, reason := range reasons {
				if len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == reason {
					return nil
				}
			}
			return errors.New(statusText(p))
		})
	}
	waits("stranger", "ErrImagePull", "ImagePullBackOff")
	waits("absent", "ErrImageNeverPull")
	l.apply(from("guest", thing, "Always", "imagePullSecrets: [{name: bob}]"))
	l.ready("guest")
	l.kubectl("delete", "pod/stranger", "pod/absent", "pod/guest", "secret/bob", "--timeout=60s")
}

func (l *lab) runtimeClass() {
	l.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: second}\nhandler: runc\n---\napiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: none}\nhandler: nonesuch\n")
	l.apply(simple("second", forever, "", "runtimeClassName: second"))
	l.apply(simple("none", forever, "", "runtimeClassName: none"))
	l.ready("second")
	for end := time.Now().Add(patience.For(time.Minute)); ; time.Sleep(500 * time.Millisecond) {
		out := l.kubectl("get", "events", "--field-selector", "involvedObject.name=none", "-o", "jsonpath={.items[*].message}")
		if strings.Contains(out, "nonesuch") {
			break
		}
		if time.Now().After(end) {
			l.t.Errorf("nothing says that the handler does not exist: %s", out)
			break
		}
	}
	l.kubectl("delete", "pod", "second", "none", "--timeout=60s")
	l.kubectl("delete", "runtimeclass", "second", "none")
}

package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// TestUserNamespaces runs a pod with users of its own and an image for a volume, on
// the real network, over a kill of the agent, with both OCI runtimes.
func TestUserNamespaces(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) { testUsersWith(t, name) })
	}
}

func testUsersWith(t *testing.T, ociRuntime string) {
	passwd := "    - {name: img, mountPath: /passwd, subPath: etc/passwd}\n"
	if ociRuntime == "crun" {
		NotOver(t, Containerd, "Debian's crun 1.8.1 cannot mount with shifted IDs, which Berth's runtime does for it")
	}
	if Chosen(t) == Containerd { // it mounts directories of images only
		passwd = "    - {name: img, mountPath: /passwd.d, subPath: etc}\n"
	}
	before := ReadHost(t)
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Flags = []string{"--oci-runtime=" + ociRuntime}
	a.Start()
	a.ImportBusybox()
	a.Place("u.yaml", `apiVersion: v1
kind: Pod
metadata: {name: u}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: img, image: {reference: "`+Busybox+`", pullPolicy: Never}}
  containers:
  - name: c
    image: `+Busybox+`
    command: [sh, -c, 'echo hello > /dev/stdout; touch /scratch/mine; trap "exit 0" TERM; while :; do sleep 1 & wait $!; done']
    readinessProbe: {exec: {command: [test, -e, /scratch/mine]}, periodSeconds: 1}
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: img, mountPath: /img}
`+passwd)
	ready := func(p *v1.Pod) error {
		for _, c := range p.Status.ContainerStatuses {
			if c.Ready && p.Status.PodIP != "" {
				return nil
			}
		}
		return fmt.Errorf("not ready: %+v", p.Status.ContainerStatuses)
	}
	check := func() {
		t.Helper()
		p := a.Wait("u", 30*time.Second, ready)
		out := a.Must("exec", "u", "--", "sh", "-c", "cat /proc/self/uid_map; id -u; stat -c %u /scratch/mine /img/bin; head -c 4 /passwd 2>/dev/null || head -c 4 /passwd.d/passwd; ip -4 addr show eth0")
		f := strings.Fields(out)
		if len(f) < 7 || f[0] != "0" || f[1] == "0" || f[3] != "0" || f[4] != "0" || f[5] != "0" || !strings.HasPrefix(f[6], "root") || !strings.Contains(out, p.Status.PodIP) {
			t.Errorf("inside:\n%s", out)
		}
	}
	check()
	if out := a.Must("logs", "u"); !strings.Contains(out, "hello") {
		t.Errorf("log: %q", out)
	}
	a.Kill9()
	a.Start()
	check()
	marks := a.Marks()
	a.Unplace("u.yaml")
	a.WaitGone("u", 30*time.Second)
	a.Stop()
	a.Purge()
	if added := ReadHost(t).Added(before, marks); len(added) > 0 {
		t.Errorf("left behind on the host:\n%s", strings.Join(added, "\n"))
	}
}

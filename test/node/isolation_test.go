package node

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

func testDevices(t *testing.T, a *Agent) {
	a.up("device", podOf("device", `    securityContext: {privileged: true}
    volumeMounts:
    - {name: zero, mountPath: /given/zero}
    - {name: work, mountPath: /work, readOnly: true, recursiveReadOnly: IfPossible}
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo said by a hook > /dev/termination-log"]}}}`,
		"  restartPolicy: Never\n  volumes: [{name: zero, hostPath: {path: /dev/zero, type: CharDevice}}, {name: work, emptyDir: {}}]"))
	a.Wait("device", 30*time.Second, Ready)
	a.sees("device", "test -c /given/zero && head -c 3 /given/zero | tr '\\0' z; touch /work/x 2>&1 | grep -c Read-only", "zzz1")
	_, _ = a.Berth("exec", "device", "-c", "c", "--", "kill", "1") // it may end the exec too
	a.Wait("device", 20*time.Second, func(p *v1.Pod) error {
		if s := containerStatus(p, "c").State.Terminated; s == nil || s.Message != "said by a hook\n" {
			return fmt.Errorf("terminated %+v", s)
		}
		return nil
	})
}

func testHTTPHooks(t *testing.T, a *Agent) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // pods in the node's network reach it
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, fmt.Sprintf("%s %s %s auth=%q own=%s", r.Method, r.URL.Path, r.UserAgent(), r.Header.Get("Authorization"), r.Header.Get("X-Own")))
		w.WriteHeader(http.StatusTeapot)
	})}
	go func() { _ = server.Serve(listener) }() // ends with Close
	t.Cleanup(func() { server.Close() })
	hook := func(kind, path, scheme string) string {
		return fmt.Sprintf("%s: {httpGet: {host: 127.0.0.1, port: %d, path: %s, scheme: %s, httpHeaders: [{name: Authorization, value: Bearer x}, {name: X-Own, value: mine}]}}", kind, listener.Addr().(*net.TCPAddr).Port, path, scheme)
	}
	a.Place("hooked.yaml", podOf("hooked", "    lifecycle: {"+hook("postStart", "/up", "HTTP")+", "+hook("preStop", "/down", "HTTPS")+"}", "  hostNetwork: true"))
	a.Wait("hooked", 30*time.Second, Ready) // whatever the status of the answer
	a.Unplace("hooked.yaml")
	a.WaitGone("hooked", 30*time.Second)
	mu.Lock()
	defer mu.Unlock()
	if want := []string{`GET /up kube-lifecycle/1.36 auth="Bearer x" own=mine`, `GET /down kube-lifecycle/1.36 auth="" own=mine`}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	if events := a.Must("get", "events", "-A"); !strings.Contains(events, "LifecycleHTTPFallback") {
		t.Errorf("no event about the fallback to HTTP:\n%s", events)
	}
}

// testUserNamespaces: two pods get two ranges; inside, files and processes are
// root's, outside they are those of the range, and the files stay unshifted.
func testUserNamespaces(t *testing.T, a *Agent) {
	const mounts = `    lifecycle: {postStart: {exec: {command: [sh, -c, "echo own words > /dev/termination-log"]}}}
    volumeMounts: [{name: work, mountPath: /work}, {name: map, mountPath: /map}, {name: memory, mountPath: /memory}, {name: work, mountPath: /part, subPath: part}]`
	const volumes = "  hostUsers: false\n  restartPolicy: Never\n  securityContext: {fsGroup: 77}\n  volumes: [{name: work, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}, {name: map, downwardAPI: {items: [{path: who, fieldRef: {fieldPath: metadata.name}}]}}]"
	ranges, uids := map[string]string{}, map[string]string{}
	for _, name := range []string{"users-a", "users-b"} {
		a.Place(name+".yaml", podOf(name, mounts, volumes))
		a.waitOrSkip(name, "does not support user namespaces")
		p, err := a.Pod(name)
		if err != nil {
			t.Fatal(err)
		}
		uids[name] = string(p.UID)
		ranges[name] = strings.Join(strings.Fields(a.inside(name, "cat /proc/self/uid_map /proc/self/gid_map")), " ")
		a.sees(name, "id -u; stat -c %u:%g /work /memory /map/..data/who; cat /map/who", "0\n0:77\n0:77\n0:77\n"+name)
		a.sees(name, "echo x > /part/f && stat -c %u:%g /work/part/f; grep -c localhost /etc/hosts; test -s /etc/resolv.conf && echo resolver", "0:77\n2\nresolver")
		f := regexp.MustCompile(`^0 (\d+) 65536 0 (\d+) 65536$`).FindStringSubmatch(ranges[name])
		if f == nil || f[1] != f[2] {
			t.Fatalf("%s: mappings %q", name, ranges[name])
		}
		dir := filepath.Join(a.Dir, "root/pods", uids[name])
		record, err := os.ReadFile(filepath.Join(dir, "userns"))
		if want := `{"uidMappings":[{"hostId":` + f[1] + `,"containerId":0,"length":65536}],"gidMappings":[{"hostId":` + f[1] + `,"containerId":0,"length":65536}]}`; err != nil || string(record) != want {
			t.Errorf("%s: record %s, %v", name, record, err)
		}
		if st, err := os.Stat(filepath.Join(dir, "volumes/kubernetes.io~empty-dir/work/part/f")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: on the host, the container's file is %+v, %v", name, st, err)
		}
	}
	if ranges["users-a"] == ranges["users-b"] {
		t.Errorf("both have the range %s", ranges["users-a"])
	}
	_, _ = a.Berth("exec", "users-a", "-c", "c", "--", "kill", "1") // it may end the exec too
	a.Wait("users-a", 20*time.Second, func(p *v1.Pod) error {
		if s := containerStatus(p, "c").State.Terminated; s == nil || s.Message != "own words\n" {
			return fmt.Errorf("terminated %+v", s)
		}
		return nil
	})
	for name, uid := range uids {
		a.Unplace(name + ".yaml")
		a.WaitGone(name, 30*time.Second)
		if _, err := os.Stat(filepath.Join(a.Dir, "root/pods", uid)); !os.IsNotExist(err) {
			t.Errorf("%s: its directory is left: %v", name, err)
		}
	}
}

// waitOrSkip waits for a pod to be ready, or skips the test if it is refused
// with text because of what this machine has installed.
func (a *Agent) waitOrSkip(name, text string) {
	a.T.Helper()
	refused := ""
	a.Wait(name, 30*time.Second, func(p *v1.Pod) error {
		if Ready(p) == nil {
			return nil
		}
		if why, _ := a.Berth("why", name); strings.Contains(why, text) {
			refused = why
			return nil
		}
		return Ready(p)
	})
	if refused != "" {
		a.Unplace(name + ".yaml")
		a.WaitGone(name, 30*time.Second)
		a.T.Skip(refused)
	}
}

// testImageVolumes: an image is mounted read-only, all of it or a part.
func testImageVolumes(t *testing.T, a *Agent) {
	volumes := "  volumes: [{name: files, image: {reference: " + Busybox + ", pullPolicy: IfNotPresent}}]"
	a.up("images", podOf("images", `    env: [{name: WHERE, value: etc}]
    volumeMounts: [{name: files, mountPath: /files}, {name: files, mountPath: /part, subPathExpr: $(WHERE)}]`, volumes))
	a.Wait("images", 30*time.Second, Ready)
	a.sees("images", "test -x /files/bin/busybox && grep -c ^root: /part/passwd; touch /files/x 2>&1 | grep -c Read-only", "1\n1")
	a.up("images-none", podOf("images-none", "    volumeMounts: [{name: files, mountPath: /files, subPath: not/there}]", volumes))
	a.Wait("images-none", 30*time.Second, waiting("ImageVolumeMountFailed", "not/there"))
	a.up("images-never", podOf("images-never", "    volumeMounts: [{name: files, mountPath: /files}]", "  volumes: [{name: files, image: {reference: absent.example/x:1, pullPolicy: Never}}]"))
	a.Wait("images-never", 30*time.Second, waiting("ErrImageNeverPull", "absent.example/x:1"))
}

// testUnsupported: what no runtime can do is refused in a sentence.
func testUnsupported(t *testing.T, a *Agent) {
	a.up("armored", podOf("armored", "    securityContext: {appArmorProfile: {type: Localhost, localhostProfile: none-of-this-host}}", ""))
	a.up("secured", podOf("secured", "    securityContext: {seccompProfile: {type: Localhost, localhostProfile: none.json}}", ""))
	for name, text := range map[string]string{"armored": "AppArmor", "secured": "none.json"} {
		Eventually(t, 30*time.Second, func() error {
			why, err := a.Berth("why", name)
			if !strings.Contains(why, text) {
				return fmt.Errorf("%s%v", why, err)
			}
			return nil
		})
	}
}

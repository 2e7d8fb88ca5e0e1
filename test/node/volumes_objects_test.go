package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

const volumeObjects = `apiVersion: v1
kind: ConfigMap
metadata: {name: vcm}
data: {a: one, b: two}
binaryData: {raw: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: vsec}
data: {key: aHVzaA==}
`

const listing = `cd /v; for f in $(find . -follow -type f ! -path "./..*" | sort); do stat -L -c "%n %a %u:%g" $f; cat $f; echo; done`

var objectCases = []volumeCase{
	{name: "configMap", volume: `configMap: {name: vcm}`, script: `stat -c "%a" /v; cat /v/a /v/b; od -An -tx1 /v/raw; readlink /v/a; stat -L -c %a /v/a; touch /v/x`,
		want: "777\nonetwo 00 01 02\n..data/a\n644\ntouch: /v/x: Read-only file system"},
	{name: "configMap items and modes", volume: `configMap: {name: vcm, defaultMode: 0400, items: [{key: a, path: d/e/a}, {key: b, path: b, mode: 0751}]}`,
		script: listing, want: "./b 751 0:0\ntwo\n./d/e/a 400 0:0\none"},
	{name: "configMap optional", volume: `configMap: {name: nope, optional: true}`, script: `ls /v | wc -l`, want: "0"},
	{name: "configMap optional key", volume: `configMap: {name: vcm, optional: true, items: [{key: nope, path: x}, {key: a, path: a}]}`, script: `ls /v`, want: "a"},
	{name: "configMap missing", volume: `configMap: {name: nope}`, fails: `MountVolume.SetUp failed for volume "v" : configmap "nope" not found`},
	{name: "configMap missing key", volume: `configMap: {name: vcm, items: [{key: k, path: x}]}`, fails: `MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: k`},
	{name: "secret", volume: `secret: {secretName: vsec, defaultMode: 0440}`, script: `stat -c %a /v; cat /v/key; echo; stat -L -c %a /v/key; grep " /v " /proc/mounts | cut -d" " -f3; touch /v/x`,
		want: "1777\nhush\n440\ntmpfs\ntouch: /v/x: Read-only file system"},
	{name: "secret items", volume: `secret: {secretName: vsec, items: [{key: key, path: deep/key, mode: 0400}]}`, script: listing, want: "./deep/key 400 0:0\nhush"},
	{name: "secret optional", volume: `secret: {secretName: nope, optional: true}`, script: `ls /v | wc -l`, want: "0"},
	{name: "secret missing", volume: `secret: {secretName: nope}`, fails: `MountVolume.SetUp failed for volume "v" : secret "nope" not found`},
	{name: "secret missing key", volume: `secret: {secretName: vsec, items: [{key: k, path: x}]}`, fails: `MountVolume.SetUp failed for volume "v" : references non-existent secret key: k`},
	{name: "downwardAPI", volume: `downwardAPI: {defaultMode: 0440, items: [{path: name, fieldRef: {fieldPath: metadata.name}}, {path: ns, fieldRef: {fieldPath: metadata.namespace}},
    {path: "mem", resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}, {path: cpu, mode: 0400, resourceFieldRef: {containerName: c, resource: requests.cpu, divisor: 1m}}]}`,
		container: `    resources: {limits: {memory: 64Mi}, requests: {cpu: 20m}}`, script: listing,
		want: "./cpu 400 0:0\n20\n./mem 440 0:0\n64\n./name 440 0:0\nv-downwardapi\n./ns 440 0:0\ndefault"},
	{name: "projected", volume: `projected: {defaultMode: 0400, sources: [{configMap: {name: vcm, items: [{key: a, path: conf/a}]}}, {secret: {name: vsec}},
    {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}, {configMap: {name: nope, optional: true}}]}`,
		script: listing + "; grep ' /v ' /proc/mounts | cut -d' ' -f3", want: "./conf/a 400 0:0\none\n./key 400 0:0\nhush\n./name 400 0:0\nv-projected\ntmpfs"},
	{name: "projected missing", volume: `projected: {sources: [{configMap: {name: nope}}, {secret: {name: none}}]}`, fails: `[configmap "nope" not found, secret "none" not found]`},
}

const writes = `id -g; id -G; stat -c "%a %u:%g" /v; touch /v/f; mkdir /v/d; touch /v/d/g; stat -c "%a %u:%g" /v/f /v/d /v/d/g`

var fsGroupCases = []volumeCase{
	{name: "emptyDir", volume: `emptyDir: {}`, spec: "  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 4000}",
		script: writes, want: "3000\n3000 4000\n2777 0:4000\n644 1000:4000\n2755 1000:4000\n644 1000:4000"},
	{name: "policy Always", volume: `emptyDir: {medium: Memory}`, spec: "  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 4000, fsGroupChangePolicy: Always}",
		script: writes, want: "3000\n3000 4000\n3777 0:4000\n644 1000:4000\n2755 1000:4000\n644 1000:4000"},
	{name: "policy OnRootMismatch", volume: `emptyDir: {}`, spec: "  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 4000, fsGroupChangePolicy: OnRootMismatch}",
		script: writes, want: "3000\n3000 4000\n2777 0:4000\n644 1000:4000\n2755 1000:4000\n644 1000:4000"},
	{name: "secret", volume: `secret: {secretName: vsec, defaultMode: 0400}`, spec: "  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 4000}",
		script: `stat -c "%a %u:%g" /v; stat -L -c "%a %u:%g" /v/key /v/..data; cat /v/key`, want: "3777 0:4000\n440 0:4000\n2755 0:4000\nhush"},
	{name: "secret without", volume: `secret: {secretName: vsec, defaultMode: 0400}`, spec: "  securityContext: {runAsUser: 1000}",
		script: `cat /v/key`, want: "cat: can't open '/v/key': Permission denied"},
}

// subPathCases makes what the cases look for below dir.
func subPathCases(t *testing.T, dir string) []volumeCase {
	dir += "/subpath"
	for _, err := range []error{
		os.MkdirAll(dir+"/d", 0o755), os.WriteFile(dir+"/d/f", []byte("deep"), 0o644), os.Symlink("d", dir+"/in"), os.Symlink("/etc", dir+"/out"),
		syscall.Chmod(dir, 0o2770),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	host := "hostPath: {path: " + dir + "}"
	return []volumeCase{
		{name: "directory", volume: host, mount: ", subPath: d", script: "ls /v; cat /v/f", want: "f\ndeep"},
		{name: "file", volume: host, mount: ", subPath: d/f", script: "cat /v", want: "deep"},
		{name: "link inside", volume: host, mount: ", subPath: in/f", script: "cat /v", want: "deep"},
		{name: "link out", volume: host, mount: ", subPath: out", fails: `subpath "out" not within volume path`},
		{name: "through a link out", volume: host, mount: ", subPath: out/new", fails: `subpath "out/new" not within volume path`},
		{name: "missing", volume: host, mount: ", subPath: new/er", script: "stat -c %a /v; touch /v/f && ls /v", want: "2770\nf"},
		{name: "missing in an emptyDir", volume: "emptyDir: {}", mount: ", subPath: logs", spec: "  securityContext: {runAsUser: 1000, fsGroup: 4000}",
			script: "stat -c '%a %g' /v; touch /v/f; stat -c %g /v/f", want: "2777 4000\n4000"},
		{name: "of a secret", volume: "secret: {secretName: vsec}", mount: ", subPath: key", script: "cat /v; echo; echo x >/v", want: "hush\nsh: can't create /v: Read-only file system"},
		{name: "read-only", volume: host, mount: ", subPath: d, readOnly: true", script: "touch /v/x", want: "touch: /v/x: Read-only file system"},
		{name: "expr", volume: "emptyDir: {}", mount: ", subPathExpr: $(POD)/$(WHAT)",
			container: "    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: WHAT, value: logs}]",
			script:    `grep " /v " /proc/self/mountinfo | cut -d" " -f4 | grep -o "/v/v-expr/logs"`, want: "/v/v-expr/logs"},
		{name: "expr without a value", volume: "emptyDir: {}", mount: ", subPathExpr: $(NOPE)", fails: "NOPE"},
	}
}

func testEmptyDirSurvives(t *testing.T, a *Agent) {
	a.Place("survive.yaml", podOf("survive", "    volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}]", "  volumes: [{name: v, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}]"))
	defer a.Unplace("survive.yaml")
	a.Wait("survive", 20*time.Second, Ready)
	a.in("survive", "echo disk >/v/f; echo memory >/m/f; chmod 700 /v")
	_, _ = a.Berth("exec", "survive", "--", "kill", "1") // its end takes the exec with it
	a.Wait("survive", 30*time.Second, func(p *v1.Pod) error {
		if p.Status.ContainerStatuses[0].RestartCount != 1 {
			return fmt.Errorf("not started again")
		}
		return Ready(p)
	})
	if got := a.in("survive", "cat /v/f /m/f; stat -c %a /v"); got != "disk\nmemory\n700" {
		t.Errorf("after a restart of the container: %q", got)
	}
}

// testObjectUpdate changes a ConfigMap and sees the volume follow within a second,
// at one instant, and a subPath of it never.
func testObjectUpdate(t *testing.T, a *Agent) {
	object := func(value string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: moving}\ndata: {x: %s, y: %s}\n", value, value)
	}
	a.Place("moving.yaml", object("one"))
	a.Place("update.yaml", podOf("update", "    volumeMounts: [{name: v, mountPath: /v}, {name: p, mountPath: /p}, {name: v, mountPath: /sub, subPath: x}]",
		"  volumes: [{name: v, configMap: {name: moving}}, {name: p, projected: {sources: [{configMap: {name: moving}}]}}]"))
	defer a.Unplace("update.yaml")
	defer a.Unplace("moving.yaml")
	a.Wait("update", 20*time.Second, Ready)
	dir := a.in("update", "readlink /v/..data")
	a.Place("moving.yaml", object("two"))
	begun := time.Now()
	Eventually(t, 5*time.Second, func() error {
		if got := a.in("update", "cat /v/x /v/y /p/x"); got != "twotwotwo" {
			return fmt.Errorf("the volumes hold %q", got)
		}
		return nil
	})
	took := time.Since(begun)
	t.Logf("the volume followed within %v, the time of the looks included", took)
	if took > 2*time.Second {
		t.Errorf("the volume followed after %v", took)
	}
	if got := a.in("update", "cat /sub; ls -a /v | grep -c '^[.][.]20'; test $(readlink /v/..data) = "+dir+" || echo switched"); got != "one1\nswitched" {
		t.Errorf("after the change: %q", got)
	}
	a.Place("moving.yaml", strings.Replace(object("three"), ", y: three", "", 1))
	Eventually(t, 5*time.Second, func() error {
		if got := a.in("update", "ls /v; cat /v/x"); got != "x\nthree" {
			return fmt.Errorf("a removed key is still there: %q", got)
		}
		return nil
	})
}

func testObjectsLate(t *testing.T, a *Agent) {
	a.Place("tardy.yaml", podOf("tardy", "    volumeMounts: [{name: v, mountPath: /v}]", "  volumes: [{name: v, secret: {secretName: tardy}}]"))
	defer a.Unplace("tardy.yaml")
	a.Wait("tardy", 20*time.Second, Phase(v1.PodPending))
	a.why("tardy", `secret "tardy" not found`)
	a.Place("tardy-secret.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: tardy}\nstringData: {k: here}\n")
	defer a.Unplace("tardy-secret.yaml")
	a.Wait("tardy", 10*time.Second, Ready)
	if got := a.in("tardy", "cat /v/k"); got != "here" {
		t.Errorf("the Secret holds %q", got)
	}
}

// testPropagationModes mounts on the host, below volumes of each mode, what
// running containers then see or do not see.
func testPropagationModes(t *testing.T, a *Agent) {
	dir := filepath.Join(a.Dir, "propagation")
	if err := os.MkdirAll(dir+"/later", 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(at, mode string) string {
		return fmt.Sprintf("{name: s, mountPath: /%s, mountPropagation: %s}", at, mode)
	}
	a.Place("modes.yaml", podOf("modes", "    securityContext: {privileged: true}\n    volumeMounts: ["+
		mount("none", "None")+", "+mount("host", "HostToContainer")+", "+mount("both", "Bidirectional")+"]", "  volumes: [{name: s, hostPath: {path: "+dir+"}}]"))
	a.Wait("modes", 20*time.Second, Ready)
	if err := syscall.Mount("tmpfs", dir+"/later", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir+"/later", syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}()
	if err := os.WriteFile(dir+"/later/seen", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := a.in("modes", "cd /; ls none/later host/later both/later"); got != "both/later:\nseen\n\nhost/later:\nseen\n\nnone/later:" {
		t.Errorf("seen in the container: %q", got)
	}
	a.Unplace("modes.yaml")
	a.WaitGone("modes", 20*time.Second)
}

// testUnusedVolume: a volume that no container mounts is neither set up nor waited for.
func testUnusedVolume(t *testing.T, a *Agent) {
	a.Place("unused.yaml", podOf("unused", "    volumeMounts: [{name: v, mountPath: /v}]",
		"  volumes: [{name: v, emptyDir: {}}, {name: idle, configMap: {name: nope}}, {name: idler, emptyDir: {}}]"))
	defer a.Unplace("unused.yaml")
	p := a.Wait("unused", 20*time.Second, Ready)
	found, _ := filepath.Glob(a.Dir + "/root/pods/" + string(p.UID) + "/volumes/*/*")
	if len(found) != 1 || filepath.Base(found[0]) != "v" {
		t.Errorf("set up: %v", found)
	}
}

func testSeveralFailures(t *testing.T, a *Agent) {
	a.Place("several.yaml", podOf("several", "    volumeMounts: [{name: p, mountPath: /p}, {name: q, mountPath: /q}, {name: r, mountPath: /r}]",
		"  volumes: [{name: p, configMap: {name: nope}}, {name: q, hostPath: {path: /no/such, type: File}}, {name: r, emptyDir: {}}]"))
	defer a.Unplace("several.yaml")
	a.Wait("several", 20*time.Second, Phase(v1.PodPending))
	a.why("several", `volume "p": configmap "nope" not found`, `volume "q": hostPath type check failed: /no/such is not a file`)
	Eventually(t, 5*time.Second, func() error {
		out := a.Must("get", "events")
		if !strings.Contains(out, "FailedMount") || !strings.Contains(out, `MountVolume.SetUp failed for volume "p"`) {
			return fmt.Errorf("no event tells of it:\n%s", out)
		}
		return nil
	})
}

// testVolumesKilled kills the agent with volumes in use: the next one finds them,
// refreshes them, and takes down those of a pod that went meanwhile.
func testVolumesKilled(t *testing.T, a *Agent) {
	a.Place("kept-cm.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {x: one}\n")
	volumes := "  volumes: [{name: v, emptyDir: {medium: Memory}}, {name: w, configMap: {name: kept}}]"
	for _, name := range []string{"kept", "gone"} {
		a.Place(name+".yaml", podOf(name, "    volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w}, {name: v, mountPath: /s, subPath: sub}]", volumes))
	}
	a.Wait("kept", 20*time.Second, Ready)
	gone := a.Wait("gone", 20*time.Second, Ready)
	a.in("kept", "echo here >/v/f; echo there >/s/g")
	a.Kill9()
	a.Unplace("gone.yaml")
	a.Place("kept-cm.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {x: two}\n")
	a.Start()
	a.WaitGone("gone", 30*time.Second)
	Eventually(t, 10*time.Second, func() error {
		if left, _ := filepath.Glob(a.Dir + "/root/pods/" + string(gone.UID)); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		if got := a.in("kept", "cat /v/f /v/sub/g /w/x"); got != "here\nthere\ntwo" {
			return fmt.Errorf("the volumes hold %q", got)
		}
		return nil
	})
	if p, err := a.Pod("kept"); err != nil || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the pod was disturbed: %v, %v", p, err)
	}
	a.Unplace("kept.yaml")
	a.Unplace("kept-cm.yaml")
	a.WaitGone("kept", 20*time.Second)
}

// testVolumesInUserNamespace: in a pod with its own users, files belong to whom the
// container takes them to belong to.
func testVolumesInUserNamespace(t *testing.T, a *Agent) {
	// The pod's root is nobody on the host, and must get through to its files.
	a.Place("userns.yaml", podOf("userns", "    volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}, {name: s, mountPath: /s}]",
		"  hostUsers: false\n  securityContext: {fsGroup: 4000}\n  volumes: [{name: v, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}, {name: s, secret: {secretName: vsec, defaultMode: 0400}}]"))
	defer a.Unplace("userns.yaml")
	var refused string
	Eventually(t, 30*time.Second, func() error {
		p, err := a.Pod("userns")
		if err != nil {
			return err
		}
		out := a.Must("why", "userns")
		if strings.Contains(out, "user namespace") {
			refused = out
			return nil
		}
		if err := Ready(p); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if refused != "" {
		t.Skip("this node has no user namespaces for pods: ", refused)
	}
	if got := a.in("userns", `test "$(cut -c1-20 /proc/self/uid_map)" != "         0          0" && echo mapped; stat -c "%a %u:%g" /v /m /s; stat -L -c "%a %u:%g" /s/key; cat /s/key; touch /v/f /m/f; stat -c "%u:%g" /v/f /m/f`); got !=
		"mapped\n2777 0:4000\n3777 0:4000\n3777 0:4000\n440 0:4000\nhush0:4000\n0:4000" {
		t.Errorf("in the container: %q", got)
	}
}

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// TestVolumes sees every kind of volume of the node itself, and every option, from
// inside a container.
func TestVolumes(t *testing.T) {
	before, marks := ReadHost(t), []string(nil)
	t.Cleanup(func() {
		if added := ReadHost(t).Added(before, marks); len(added) > 0 {
			t.Errorf("left behind on the host:\n%s", strings.Join(added, "\n"))
		}
	})
	reserved := reserveHugePages(t, 8) // before the agent looks at what the node has
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	marks = a.Marks()
	a.ImportBusybox()
	for _, group := range []struct {
		name  string
		cases []volumeCase
	}{
		{"emptyDir", emptyDirCases}, {"hostPath", hostPathCases(t, a.Dir)}, {"objects", objectCases},
		{"fsGroup", fsGroupCases}, {"subPath", subPathCases(t, a.Dir)},
	} {
		a.Place("objects.yaml", volumeObjects)
		for _, c := range group.cases {
			t.Run(group.name+"/"+c.name, func(t *testing.T) { c.run(t, a.For(t)) })
		}
	}
	for name, test := range map[string]func(*testing.T, *Agent){
		"emptyDir/survives its containers": testEmptyDirSurvives, "objects/update": testObjectUpdate, "objects/appear late": testObjectsLate,
		"hostPath/block device": testBlockDevice, "propagation": testPropagationModes, "only what is used": testUnusedVolume,
		"several failures": testSeveralFailures, "teardown spares live data": testTeardownSparesLiveData, "killed": testVolumesKilled,
		"user namespace": testVolumesInUserNamespace,
	} {
		t.Run(name, func(t *testing.T) { test(t, a.For(t)) })
	}
	t.Run("emptyDir/huge pages", func(t *testing.T) { testHugePageVolumes(t, a.For(t), reserved) })
}

// volumeCase is a pod with one volume v at /v and what a script in it prints. The
// script's standard error goes where its output goes.
type volumeCase struct {
	name      string
	volume    string // YAML of the volume, without its name
	mount     string // further fields of the mount, each after a comma
	container string // further lines of the container
	spec      string // further lines of the pod
	script    string
	want      string
	fails     string // instead: what `berth why` says of a pod that cannot start
	// refused is what to look at where the host cannot limit huge pages.
	refused func(a *Agent, name string)
}

func (c volumeCase) run(t *testing.T, a *Agent) {
	name := "v-" + strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(filepath.Base(t.Name()))), "-")
	a.Place(name+".yaml", podOf(name, "    volumeMounts: [{name: v, mountPath: /v"+c.mount+"}]\n"+c.container, "  volumes: [{name: v, "+c.volume+"}]\n"+c.spec))
	defer a.Unplace(name + ".yaml")
	if c.fails != "" {
		a.Wait(name, 20*time.Second, Phase(v1.PodPending))
		a.why(name, strings.Replace(c.fails, `MountVolume.SetUp failed for volume "v" : `, `volume "v": `, 1))
		return
	}
	refused := false
	a.Wait(name, 30*time.Second, func(p *v1.Pod) error {
		refused = c.refused != nil && waiting("CreateContainerError", "not supported by this host: huge pages")(p) == nil
		if refused {
			return nil
		}
		return Ready(p)
	})
	if refused {
		c.refused(a, name)
		return
	}
	if got := a.in(name, c.script); got != c.want {
		t.Errorf("%s\nprints %q\nwant   %q", c.script, got, c.want)
	}
}

// in runs a script in the pod called name and returns what it prints.
func (a *Agent) in(name, script string) string {
	a.T.Helper()
	return strings.TrimSpace(a.Must("exec", name, "--", "sh", "-c", "exec 2>&1\n"+script+"\ntrue"))
}

var emptyDirCases = []volumeCase{
	{name: "default", volume: `emptyDir: {}`, script: `stat -c "%a %u:%g" /v; echo x >/v/f; cat /v/f; grep -c " /v tmpfs" /proc/mounts`, want: "777 0:0\nx\n0"},
	{name: "memory", volume: `emptyDir: {medium: Memory, sizeLimit: 2Mi}`,
		script: `stat -c "%a" /v; dd if=/dev/zero of=/v/f bs=1M count=1 2>/dev/null && echo fits; dd if=/dev/zero of=/v/g bs=1M count=4 2>&1 | grep -o "No space left on device"; df -k /v | awk 'NR==2 {print $2}'`,
		want:   "1777\nfits\nNo space left on device\n2048"},
	{name: "memory as large as the pod", volume: `emptyDir: {medium: Memory, sizeLimit: 1Gi}`, container: `    resources: {limits: {memory: 48Mi}}`,
		script: `df -k /v | awk 'NR==2 {print $2}'`, want: "49152"},
	{name: "read-only mount", volume: `emptyDir: {}`, mount: `, readOnly: true`, script: `touch /v/f`, want: "touch: /v/f: Read-only file system"},
	{name: "recursive read-only", volume: `emptyDir: {}`, mount: `, readOnly: true, recursiveReadOnly: IfPossible`, script: `touch /v/f`, want: "touch: /v/f: Read-only file system"},
}

// hostPathCases makes what the cases look for below dir.
func hostPathCases(t *testing.T, dir string) []volumeCase {
	dir += "/host"
	for _, err := range []error{
		os.MkdirAll(dir+"/dir", 0o700), os.WriteFile(dir+"/dir/f", []byte("deep"), 0o644), os.WriteFile(dir+"/file", []byte("content"), 0o644),
		os.Symlink("dir", dir+"/link"), syscall.Mknod(dir+"/null", syscall.S_IFCHR|0o666, 1<<8|3), os.Chmod(dir+"/null", 0o666),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	at := func(path, kind string) string {
		return fmt.Sprintf("hostPath: {path: %q, type: %q}", filepath.Join(dir, path), kind)
	}
	no := func(path, what string) string {
		return fmt.Sprintf(`MountVolume.SetUp failed for volume "v" : hostPath type check failed: %s/%s is not %s`, dir, path, what)
	}
	return []volumeCase{
		{name: "any", volume: at("dir", ""), script: "cat /v/f", want: "deep"},
		{name: "directory", volume: at("dir", "Directory"), script: "cat /v/f; echo y >/v/g; cat /v/g", want: "deepy"},
		{name: "directory by a link", volume: at("link", "Directory"), script: "cat /v/f", want: "deep"},
		{name: "no directory", volume: at("file", "Directory"), fails: no("file", "a directory")},
		{name: "directory missing", volume: at("none", "Directory"), fails: no("none", "a directory")},
		{name: "directory or create", volume: at("new/er", "DirectoryOrCreate"), script: "stat -c '%a %u:%g' /v", want: "755 0:0"},
		{name: "directory or create on a file", volume: at("file", "DirectoryOrCreate"), fails: no("file", "a directory")},
		{name: "file", volume: at("file", "File"), script: "cat /v", want: "content"},
		{name: "no file", volume: at("dir", "File"), fails: no("dir", "a file")},
		{name: "file missing", volume: at("none", "File"), fails: no("none", "a file")},
		{name: "file or create", volume: at("newfile", "FileOrCreate"), script: "stat -c '%a %s' /v", want: "644 0"},
		{name: "file or create on a directory", volume: at("dir", "FileOrCreate"), fails: no("dir", "a file")},
		{name: "socket", volume: at("socket", "Socket"), script: "test -S /v && echo socket", want: "socket"},
		{name: "no socket", volume: at("file", "Socket"), fails: no("file", "a socket file")},
		{name: "character device", volume: at("null", "CharDevice"), script: "test -c /v && echo x >/v && echo written", want: "written"},
		{name: "no character device", volume: at("file", "CharDevice"), fails: no("file", "a character device")},
		{name: "no block device", volume: at("null", "BlockDevice"), fails: no("null", "a block device")},
		{name: "read-only", volume: at("dir", ""), mount: ", readOnly: true", script: "touch /v/h", want: "touch: /v/h: Read-only file system"},
		{name: "no fsGroup", volume: at("dir", ""), spec: "  securityContext: {fsGroup: 4000}", script: "stat -c '%a %g' /v", want: "700 0"},
	}
}

// reserveHugePages raises the node's huge pages of 2 MiB by n for this test, and
// says how many there are then; 0 if the host does not give any.
func reserveHugePages(t *testing.T, n int) int {
	const file = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	read := func() (pages int) {
		body, err := os.ReadFile(file)
		if err == nil {
			_, err = fmt.Sscan(string(body), &pages)
		}
		if err != nil {
			return 0
		}
		return pages
	}
	was := read()
	if err := os.WriteFile(file, fmt.Append(nil, was+n), 0o644); err != nil {
		t.Logf("huge pages: %v", err)
		return 0
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, fmt.Append(nil, was), 0o644); err != nil {
			t.Errorf("give the huge pages back: %v", err)
		}
	})
	return read()
}

// testHugePageVolumes allocates pages in volumes of both media. Sizes that the
// kernel does not have, or of which no page is reserved, are refused.
func testHugePageVolumes(t *testing.T, a *Agent, reserved int) {
	if reserved == 0 {
		t.Skip("the host reserves no huge pages of 2 MiB (too little or too fragmented memory, or no permission)")
	}
	limits := "    resources: {limits: {memory: 64Mi, hugepages-2Mi: 4Mi}}"
	for _, medium := range []string{"HugePages", "HugePages-2Mi"} {
		t.Run(medium, func(t *testing.T) {
			volumeCase{
				volume: "emptyDir: {medium: " + medium + "}", container: limits,
				script: `grep " /v " /proc/mounts | grep -o "hugetlbfs.*pagesize=2M" | cut -d" " -f1; stat -c %a /v; fallocate -l 2097152 /v/page && stat -c %s /v/page`,
				want:   "hugetlbfs\n777\n2097152", refused: (*Agent).hugePagesFromHost,
			}.run(t, a.For(t))
		})
	}
	t.Run("none asked for", func(t *testing.T) {
		volumeCase{volume: "emptyDir: {medium: HugePages}", fails: "there is no resource request for huge pages"}.run(t, a.For(t))
	})
}

// hugePagesFromHost looks at the volume of the pod called name from the host. Its
// container is refused where nothing can limit its huge pages: on a hybrid host
// whose hugetlb controller is in the version 2 hierarchy.
func (a *Agent) hugePagesFromHost(name string) {
	a.T.Helper()
	p, err := a.Pod(name)
	if err != nil {
		a.T.Fatal(err)
	}
	dir := a.Dir + "/root/pods/" + string(p.UID) + "/volumes/kubernetes.io~empty-dir/v"
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil || fs.Bsize != 2<<20 {
		a.T.Errorf("%s: %v, pages of %d bytes", dir, err, fs.Bsize)
	}
	f, err := os.Create(dir + "/page")
	if err != nil {
		a.T.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, 2<<20); err != nil {
		a.T.Errorf("no page for %s: %v", f.Name(), err)
	}
}

// testBlockDevice reads a loop device by its host path.
func testBlockDevice(t *testing.T, a *Agent) {
	file := a.Dir + "/disk"
	if err := os.WriteFile(file, append([]byte("on the disk"), make([]byte, 1<<20-11)...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("the host makes no loop device: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	defer func() {
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", loop, err, out)
		}
	}()
	c := volumeCase{volume: fmt.Sprintf("hostPath: {path: %s, type: BlockDevice}", loop),
		container: "    securityContext: {privileged: true}", script: "test -b /v && head -c 11 /v", want: "on the disk"}
	t.Run("privileged", func(t *testing.T) { c.run(t, a.For(t)) })
	// Without the right to use devices it is seen, and may not be opened.
	c.container, c.script, c.want = "", "test -b /v && echo there; head -c 11 /v", "there\nhead: /v: Operation not permitted"
	t.Run("unprivileged", func(t *testing.T) { c.run(t, a.For(t)) })
	c.volume, c.fails = strings.Replace(c.volume, "BlockDevice", "CharDevice", 1), "is not a character device"
	t.Run("as a character device", func(t *testing.T) { c.run(t, a.For(t)) })
}

// testTeardownSparesLiveData mounts live data of the host inside a pod's volume,
// as an administrator or a container might, and removes the pod.
func testTeardownSparesLiveData(t *testing.T, a *Agent) {
	live := a.Dir + "/live"
	if err := errors.Join(os.MkdirAll(live+"/sub", 0o755), os.WriteFile(live+"/sub/precious", []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	a.Place("spare.yaml", podOf("spare", "    volumeMounts: [{name: v, mountPath: /v}]", "  volumes: [{name: v, emptyDir: {}}]"))
	p := a.Wait("spare", 20*time.Second, Ready)
	pod := a.Dir + "/root/pods/" + string(p.UID)
	inside := pod + "/volumes/kubernetes.io~empty-dir/v/inside"
	if err := errors.Join(os.Mkdir(inside, 0o755), os.Symlink(live, inside+"-link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(live, inside, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	a.Unplace("spare.yaml")
	a.WaitGone("spare", 20*time.Second)
	if _, err := os.Stat(live + "/sub/precious"); err != nil {
		t.Errorf("live data is gone: %v", err)
	}
	Eventually(t, 10*time.Second, func() error {
		if _, err := os.Lstat(pod); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the pod's directory is still there: %v", err)
		}
		return nil
	})
}

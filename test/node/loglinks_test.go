package node

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// shipper reads links as log shippers do: it looks for them in a directory,
// follows each by name, and opens it again when it leads to another file.
type shipper struct {
	dir, prefix string
	open        map[string]*os.File
	got         map[string]*bytes.Buffer // by link
}

func (s *shipper) look(t *testing.T) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), s.prefix) && s.open[e.Name()] == nil {
			if f, err := os.Open(filepath.Join(s.dir, e.Name())); err == nil {
				s.open[e.Name()] = f
				if s.got[e.Name()] == nil {
					s.got[e.Name()] = &bytes.Buffer{}
				}
			}
		}
	}
	for name, f := range s.open {
		there, err := os.Stat(filepath.Join(s.dir, name)) // before reading: what was written until the change is read
		if _, err := io.Copy(s.got[name], f); err != nil {
			t.Error(err)
		}
		if mine, e := f.Stat(); err == nil && e == nil && !os.SameFile(mine, there) {
			f.Close()
			next, err := os.Open(filepath.Join(s.dir, name))
			if err != nil {
				delete(s.open, name)
				continue
			}
			s.open[name] = next
		}
	}
}

func (s *shipper) run(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		s.look(t)
		time.Sleep(5 * time.Millisecond)
	}
	for name, f := range s.open {
		if _, err := io.Copy(s.got[name], f); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}

func testLogLinks(t *testing.T, a *Agent) {
	links := filepath.Join(a.Dir, "containers")
	name := regexp.MustCompile(`^linked_default_c-[0-9a-f]{64}\.log$`)
	s := &shipper{dir: links, prefix: "linked_default_", open: map[string]*os.File{}, got: map[string]*bytes.Buffer{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx, t) }()
	defer func() { cancel(); <-done }()
	body := strings.Replace(podOf("linked", "", ""), `trap "exit 0" TERM; while :; do sleep 1 & wait $!; done`,
		`trap "exit 0" TERM; n=0; while :; do n=$((n+1)); echo line $n of a log that is followed by its link; usleep 5000; [ -e /stop ] && exit 0; done`, 1)
	a.Place("linked.yaml", body)
	a.Wait("linked", 30*time.Second, Ready)
	logs, err := filepath.Glob(filepath.Join(a.Dir, "log", "default_linked_*", "c"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("log directory: %v, %v", logs, err)
	}
	Eventually(t, 60*time.Second, func() error { // the log is rotated, more than once
		if rotated, _ := filepath.Glob(logs[0] + "/0.log.*"); len(rotated) < 2 {
			return fmt.Errorf("rotated: %v", rotated)
		}
		return nil
	})
	a.inside("linked", "touch /stop")
	a.Wait("linked", 30*time.Second, func(p *v1.Pod) error {
		if c := containerStatus(p, "c"); c.RestartCount < 1 || c.State.Running == nil {
			return fmt.Errorf("not restarted: %+v", c)
		}
		return nil
	})
	time.Sleep(300 * time.Millisecond) // the second instance says something
	entries, err := os.ReadDir(links)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "linked_") && !name.MatchString(e.Name()) {
			t.Errorf("a shipper could not take this name apart: %s", e.Name())
		}
	}
	a.Unplace("linked.yaml")
	a.WaitGone("linked", 30*time.Second)
	cancel()
	<-done
	if len(s.got) != 2 {
		t.Errorf("%d links, want one for each instance", len(s.got))
	}
	for link, text := range s.got {
		inOrder(t, link, text)
	}
	if left, _ := filepath.Glob(links + "/linked_*"); len(left) != 0 {
		t.Errorf("links are left: %v", left)
	}
}

// inOrder sees that no line is missing and none comes twice. containerd makes the
// new file before it stops writing to the old one: who follows the link may miss
// some lines at each rotation.
func inOrder(t *testing.T, link string, text *bytes.Buffer) {
	n, spare := 0, 0
	if Chosen(t) == Containerd {
		spare = 10
	}
	for lines := bufio.NewScanner(text); lines.Scan(); {
		n++
		for ; spare > 0 && !strings.HasSuffix(lines.Text(), fmt.Sprintf(" line %d of a log that is followed by its link", n)); spare-- {
			n++
		}
		if want := fmt.Sprintf(" stdout F line %d of a log that is followed by its link", n); !strings.HasSuffix(lines.Text(), want) {
			t.Fatalf("%s: line %d is %q", link, n, lines.Text())
		}
	}
	if n < 5 {
		t.Errorf("%s: only %d lines were shipped", link, n)
	}
}

// TestLogLinksAfterKill kills the agent while a pod runs, and leaves a link and a
// range of IDs of pods that are no more: the next start takes these away, and
// keeps the pod's.
func TestLogLinksAfterKill(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	a.Place("kept.yaml", podOf("kept", "", ""))
	a.Wait("kept", 30*time.Second, Ready)
	a.end(syscall.SIGKILL)
	links := filepath.Join(a.Dir, "containers")
	dangling := filepath.Join(links, "gone_default_c-0123.log")
	if err := os.Symlink(filepath.Join(a.Dir, "log", "default_gone_u", "c", "0.log"), dangling); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(a.Dir, "root/pods/00000000-gone")
	if err := os.Mkdir(orphan, 0o750); err != nil {
		t.Fatal(err)
	}
	record := `{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}`
	if err := os.WriteFile(filepath.Join(orphan, "userns"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Start()
	a.Wait("kept", 30*time.Second, Ready)
	if _, err := os.Lstat(filepath.Join(orphan, "userns")); !os.IsNotExist(err) {
		t.Errorf("the range of IDs of a pod that is gone stays: %v", err)
	}
	if _, err := os.Lstat(dangling); !os.IsNotExist(err) {
		t.Errorf("a dangling link stays: %v", err)
	}
	have, err := filepath.Glob(links + "/kept_default_c-*.log")
	if err != nil || len(have) != 1 {
		t.Fatalf("links %v, %v", have, err)
	}
	if st, err := os.Stat(have[0]); err != nil || !st.Mode().IsRegular() {
		t.Errorf("the link leads to %v, %v", st, err)
	}
	a.Stop()
	a.Purge()
	if have, _ = filepath.Glob(links + "/*"); len(have) != 0 {
		t.Errorf("links are left after purge: %v", have)
	}
}

package monitor

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDescriptorGivenAway ends a watched process while its pidfd is still open
// elsewhere, as in a program that is being started, and lets another watched
// process have its number: the loop must neither reap that one nor stand still.
func TestDescriptorGivenAway(t *testing.T) {
	m := lying(t, "exit 1")
	sleep := func() *exec.Cmd {
		cmd := exec.Command("sleep", "100")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	first, second := sleep(), sleep()
	id, err := Identify(first.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Adopt("first", id); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	number := int(m.byID["first"])
	m.mu.Unlock()
	kept, err := unix.Dup(number)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kept)
	first.Process.Kill()
	first.Wait()
	if h := hint(t, m); h != (Hint{Gone, "first"}) {
		t.Fatalf("%+v", h)
	}
	fd, err := unix.PidfdOpen(second.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	if fd != number {
		if err := unix.Dup3(fd, number, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	if err := m.watch(number, watch{id: "second", cmd: second}); err != nil {
		t.Fatal(err)
	}
	exits := m.cfg.ExitDir
	if err := os.WriteFile(filepath.Join(exits, ".x"), []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(exits, ".x"), filepath.Join(exits, "third")); err != nil {
		t.Fatal(err)
	}
	if h := hint(t, m); h != (Hint{Exited, "third"}) {
		t.Errorf("%+v", h)
	}
	second.Process.Kill()
	if h := hint(t, m); h != (Hint{Gone, "second"}) {
		t.Errorf("%+v", h)
	}
}

package container

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A command that leaves a child with its output open is over when it has ended.
func TestExecSyncChildKeepsThePipe(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			t.Fatal(err)
		}
		id := n.start(n.config("sleep", "1000"))
		for script, want := range map[string]int32{"sleep 30 & sleep 0.5; echo done; exit 3": 3, "sleep 30 & sleep 0.5; echo done; kill -9 $$": 137} {
			began := time.Now()
			out, _, code, err := n.store.ExecSync(t.Context(), id, []string{"sh", "-c", script}, 20*time.Second)
			took := time.Since(began)
			if n.rtName == "runc" && err != nil && took > 19*time.Second && unix.ByteSliceToString(u.Release[:]) < "6.15" {
				t.Skipf("Linux %s does not tell the exit codes of others' children (6.15 does)", unix.ByteSliceToString(u.Release[:]))
			}
			if err != nil || code != want || string(out) != "done\n" || took > 10*time.Second {
				t.Errorf("%s: %q %d %v after %v", script, out, code, err, took)
			}
		}
	})
}

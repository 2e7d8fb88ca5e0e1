package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func line(second int, stream, tag, content string) string {
	return fmt.Sprintf("%s %s %s %s\n", t0.Add(time.Duration(second)*time.Second).Format(time.RFC3339Nano), stream, tag, content)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestRead(t *testing.T) {
	long := strings.Repeat("x", 3*maxLine)
	sample := line(0, "stdout", "F", "zero") + line(1, "stderr", "F", "one") + line(2, "stdout", "P", "tw") +
		line(2, "stderr", "F", "between") + line(3, "stdout", "F", "o") + line(4, "stdout", "F", "")
	for name, tc := range map[string]struct {
		content  string
		o        Options
		out, err string
	}{
		"all":           {sample, Options{Tail: -1}, "zero\ntwo\n\n", "one\nbetween\n"},
		"tail":          {sample, Options{Tail: 2}, "o\n\n", ""},
		"tail none":     {sample, Options{Tail: 0}, "", ""},
		"tail too many": {sample, Options{Tail: 100}, "zero\ntwo\n\n", "one\nbetween\n"},
		"since":         {sample, Options{Tail: -1, Since: t0.Add(2 * time.Second)}, "two\n\n", "between\n"},
		"limit":         {sample, Options{Tail: -1, LimitBytes: 7}, "zero\n", "on"},
		"timestamps": {sample, Options{Tail: 3, Timestamps: true},
			"2026-01-02T03:04:08.000000000Z o\n2026-01-02T03:04:09.000000000Z \n", "2026-01-02T03:04:07.000000000Z between\n"},
		"stamp once a line": {line(0, "stdout", "P", "a") + line(1, "stdout", "P", "b") + line(2, "stdout", "F", "c"), Options{Tail: -1, Timestamps: true},
			"2026-01-02T03:04:05.000000000Z abc\n", ""},
		"long":          {line(0, "stdout", "F", long) + line(1, "stdout", "F", "next"), Options{Tail: -1}, long + "\nnext\n", ""},
		"long, tail":    {line(0, "stdout", "F", "no") + line(0, "stdout", "F", long), Options{Tail: 1}, long + "\n", ""},
		"garbage":       {"not a log\n\n" + line(0, "stdout", "F", "ok") + "2026 stdout\n", Options{Tail: -1}, "ok\n", ""},
		"no end":        {line(0, "stdout", "F", "a") + strings.TrimSuffix(line(1, "stdout", "F", "b"), "\n"), Options{Tail: -1}, "a\nb", ""},
		"no end, tail":  {line(0, "stdout", "F", "a") + strings.TrimSuffix(line(1, "stdout", "F", "b"), "\n"), Options{Tail: 1}, "b", ""},
		"tags":          {line(0, "stdout", "P:x", "a") + line(0, "stdout", "F:y:z", "b"), Options{Tail: -1}, "ab\n", ""},
		"empty":         {"", Options{Tail: 5}, "", ""},
		"binary zeroes": {line(0, "stdout", "F", "a\x00b"), Options{Tail: -1}, "a\x00b\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			write(t, path, tc.content)
			var out, errOut bytes.Buffer
			if err := Read(t.Context(), path, tc.o, &out, &errOut); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.out || errOut.String() != tc.err {
				t.Errorf("stdout %.200q\nwant   %.200q\nstderr %.200q\nwant   %.200q", out.String(), tc.out, errOut.String(), tc.err)
			}
		})
	}
}

func TestTailOverBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var all []string
	var content strings.Builder
	for i := range 5000 {
		s := fmt.Sprint(i, strings.Repeat("y", i%70))
		all = append(all, s)
		content.WriteString(line(i, "stdout", "F", s))
	}
	write(t, path, content.String())
	for _, n := range []int{1, 2, 999, 2500, 4999, 5000} {
		var out bytes.Buffer
		if err := Read(t.Context(), path, Options{Tail: int64(n)}, &out, nil); err != nil {
			t.Fatal(err)
		}
		if want := strings.Join(all[5000-n:], "\n") + "\n"; out.String() != want {
			t.Errorf("tail %d: %d bytes, want %d", n, out.Len(), len(want))
		}
	}
}

func TestRefusesWhatIsNoLog(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "secret"), line(0, "stdout", "F", "secret"))
	if err := os.Symlink("secret", filepath.Join(dir, "0.log")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Read(t.Context(), filepath.Join(dir, "0.log"), Options{Tail: -1}, &out, &out); err == nil || out.Len() > 0 {
		t.Errorf("a symbolic link was followed: %q", out.String())
	}
	if err := Read(t.Context(), dir, Options{Tail: -1}, &out, &out); err == nil {
		t.Error("a directory was read")
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestFollowOverRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, line(0, "stdout", "F", "old")+line(0, "stdout", "F", "first"))
	var out buffer
	ended := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- Read(t.Context(), path, Options{Follow: true, Tail: 1, Ended: ended}, &out, &out) }()
	eventually(t, "the first line", func() bool { return out.String() == "first\n" })
	half := line(1, "stdout", "F", "halves")
	write(t, path, half[:len(half)-4])
	time.Sleep(20 * time.Millisecond)
	write(t, path, half[len(half)-4:])
	eventually(t, "a line in two writes", func() bool { return out.String() == "first\nhalves\n" })
	r := Rotation{MaxSize: 1, MaxFiles: 3}
	did, err := r.Rotate(path, t0, func() error {
		write(t, path+".20260102-030405", line(2, "stdout", "F", "last of the old")) // the writer is a little late
		write(t, path, line(3, "stdout", "F", "new"))
		return nil
	})
	if !did || err != nil {
		t.Fatal(did, err)
	}
	eventually(t, "both files", func() bool { return out.String() == "first\nhalves\nlast of the old\nnew\n" })
	write(t, path, line(4, "stdout", "F", "end"))
	close(ended)
	if err := <-done; err != nil || !strings.HasSuffix(out.String(), "new\nend\n") {
		t.Errorf("%q %v", out.String(), err)
	}
}

func TestFollowEndsWithClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, line(0, "stdout", "F", "x"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var out buffer
	go func() { done <- Read(ctx, path, Options{Follow: true, Tail: -1}, &out, nil) }()
	eventually(t, "output", func() bool { return out.String() == "x\n" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	r := Rotation{MaxSize: 10, MaxFiles: 4}
	reopened := 0
	reopen := func() error { reopened++; write(t, path, ""); return nil }
	write(t, path, "small")
	if did, err := r.Rotate(path, t0, reopen); did || err != nil {
		t.Fatalf("small log: %v %v", did, err)
	}
	write(t, filepath.Join(dir, "0.log.20250101-000000.gz.tmp"), "half")
	for i := range 6 {
		write(t, path, line(i, "stdout", "F", fmt.Sprint("generation ", i)))
		if did, err := r.Rotate(path, t0.Add(time.Duration(i)*time.Second), reopen); !did || err != nil {
			t.Fatalf("%d: %v %v", i, did, err)
		}
	}
	files, err := rotated(path)
	if err != nil || len(files) != 3 || reopened != 6 {
		t.Fatalf("%v %v, reopened %d", files, err, reopened)
	}
	for i, f := range files {
		if strings.HasSuffix(f, ".gz") != (i < 2) {
			t.Errorf("%s: all but the newest are compressed", f)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "0.log.20250101-000000.gz.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Error("half a compressed file is left")
	}
	write(t, path, line(6, "stdout", "F", "current"))
	for _, tc := range []struct {
		o    Options
		want string
	}{
		{Options{Tail: -1, Rotated: true}, "generation 3\ngeneration 4\ngeneration 5\ncurrent\n"},
		{Options{Tail: 3, Rotated: true}, "generation 4\ngeneration 5\ncurrent\n"},
		{Options{Tail: 3}, "current\n"},
	} {
		var out bytes.Buffer
		if err := Read(t.Context(), path, tc.o, &out, nil); err != nil || out.String() != tc.want {
			t.Errorf("%+v: %q %v", tc.o, out.String(), err)
		}
	}
}

func TestRotateUndone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, line(0, "stdout", "F", "content"))
	r := Rotation{MaxSize: 1, MaxFiles: 2}
	failure := errors.New("no monitor")
	if did, err := r.Rotate(path, t0, func() error { return failure }); did || !errors.Is(err, failure) {
		t.Fatal(did, err)
	}
	if b, _ := os.ReadFile(path); !strings.Contains(string(b), "content") {
		t.Error("the log is not under its name")
	}
	os.Remove(path)
	called := false
	if _, err := r.Rotate(path, t0, func() error { called = true; return nil }); err != nil || !called {
		t.Errorf("a missing log is reopened: %v %v", called, err)
	}
	if _, err := (Rotation{MaxSize: 1, MaxFiles: 1}).Rotate(path, t0, nil); err == nil {
		t.Error("one file was accepted")
	}
	// Twice in a second.
	for range 3 {
		write(t, path, "xxxxxxxx")
		if did, err := (Rotation{MaxSize: 1, MaxFiles: 9}).Rotate(path, t0, func() error { return nil }); !did || err != nil {
			t.Fatal(did, err)
		}
	}
	if f, _ := rotated(path); len(f) != 3 {
		t.Errorf("rotated: %v", f)
	}
}

func FuzzParseHead(f *testing.F) {
	f.Add([]byte(line(0, "stdout", "F", "x")))
	f.Add([]byte("2026-01-02T03:04:05Z stderr P:a:b \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, content, err := parseHead(b); err == nil && !bytes.HasSuffix(b, content) {
			t.Errorf("content %q is not the end of %q", content, b)
		}
	})
}

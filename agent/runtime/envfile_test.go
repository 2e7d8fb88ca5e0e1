package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestFindKey(t *testing.T) {
	file := "# comment\n\n  \t\nA='1'\n  B='two words' # why\nC='line one\nline two'\t\nD= 'spaced'\nE=\nF=''\nG='$(A) \\n \"x\"'\nA='again'\r\nH='crlf'\r\n"
	for key, want := range map[string]string{"A": "1", "B": "two words", "C": "line one\nline two", "D": "", "E": "", "F": "", "G": `$(A) \n "x"`, "H": "crlf"} {
		if got, ok, err := findKey(file, key); err != nil || !ok || got != want {
			t.Errorf("%s: %q, %v, %v; want %q", key, got, ok, err, want)
		}
	}
	if _, ok, err := findKey(file, "Z"); ok || err != nil {
		t.Errorf("a key that is not there: %v, %v", ok, err)
	}
	for text, want := range map[string]string{
		"X":                    "line 1 is not of the form",
		"A='1'\nX\nY='2'\n":    "line 2 is not of the form",
		"A='1\n2'\n\nX\n":      "line 4 is not of the form",
		"A ='1'":               "a space or nothing before",
		"='1'":                 "a space or nothing before",
		"export A='1'":         "a space or nothing before",
		"A=1":                  "not in single quotes",
		`A="1"`:                "not in single quotes",
		"A='1":                 "closing quote is missing",
		"A='1' junk":           "other than a comment",
		"A='1''2'":             "other than a comment",
		"# only\nA='it''s'\n#": "other than a comment",
	} {
		if _, _, err := findKey(text, "Z"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if got, ok, err := findKey("A='1'\nthis is broken", "A"); got != "1" || !ok || err != nil {
		t.Errorf("what follows the key is not looked at: %q, %v, %v", got, ok, err)
	}
}

func FuzzFindKey(f *testing.F) {
	for _, s := range []string{"A='1'\n", "A='\n'", "A=\nB", "'", "=", "#\n\nA='x' #"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		value, ok, err := findKey(text, "A")
		if (err != nil || !ok) && value != "" {
			t.Errorf("%q: %q, %v, %v", text, value, ok, err)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("the error holds the file: %v", err)
		}
	})
}

func TestFileKeyStaysInTheVolume(t *testing.T) {
	dir := t.TempDir()
	volume, outside := filepath.Join(dir, "volume"), filepath.Join(dir, "outside")
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, at string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(volume, at)); err != nil {
			t.Fatal(err)
		}
	}
	write(outside, "A='secret'\n")
	write(filepath.Join(volume, "d/env"), "A='inside'\nEMPTY=''\n")
	write(filepath.Join(volume, "big"), strings.Repeat("#", maxEnvFile)+"\nA='1'\n")
	write(filepath.Join(volume, "bad"), "A=secret\n")
	link("d/env", "good")
	link(outside, "absolute")
	link("../outside", "relative")
	link("..", "up")
	if err := unix.Mkfifo(filepath.Join(volume, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := facts{pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}, volumes: map[string]pod.Volume{"v": {HostPath: volume}}}
	tests := []struct {
		path, key string
		optional  bool
		want      string // "=" and the value, "" for none, else part of the error
	}{
		{"d/env", "A", false, "=inside"},
		{"good", "A", false, "=inside"},
		{"d/env", "B", false, `environment variable key "B" not found in file "d/env"`},
		{"d/env", "B", true, ""},
		{"d/env", "EMPTY", false, `environment variable key "EMPTY" not found`},
		{"d/env", "EMPTY", true, ""},
		{"none", "A", false, "couldn't parse env file"},
		{"none", "A", true, ""},
		{"bad", "A", true, "couldn't parse env file"},
		{"absolute", "A", true, "couldn't parse env file"},
		{"relative", "A", true, "couldn't parse env file"},
		{"up/outside", "A", true, "couldn't parse env file"},
		{"../outside", "A", true, "couldn't parse env file"},
		{outside, "A", true, "couldn't parse env file"},
		{"fifo", "A", true, "not a regular file"},
		{"d", "A", true, "not a regular file"},
		{"big", "A", true, "more than"},
	}
	for _, tt := range tests {
		c := &v1.Container{Env: []v1.EnvVar{{Name: "E", ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{VolumeName: "v", Path: tt.path, Key: tt.key, Optional: ptr.To(tt.optional)}}}}}
		e, err := environment(f, c)
		got := ""
		if err != nil {
			got = err.Error()
			if pod.KindOf(err) != pod.Invalid || strings.Contains(got, "secret") {
				t.Errorf("%s %s: %v: %v", tt.path, tt.key, pod.KindOf(err), err)
			}
		} else if len(e.names) == 1 {
			got = "=" + e.values["E"]
		}
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s %s: %q, want %q", tt.path, tt.key, got, tt.want)
		}
	}
	_, _, err := f.fileKey(&v1.FileKeySelector{VolumeName: "other", Path: "x", Key: "A"})
	if pod.KindOf(err) != pod.NotFound {
		t.Errorf("no such volume: %v", err)
	}
}

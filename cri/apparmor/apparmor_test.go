package apparmor

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// host makes a kernel with AppArmor on, and a parser that keeps what it is given.
func host(t *testing.T, parser string) (Config, string) {
	t.Helper()
	dir := t.TempDir()
	for path, text := range map[string]string{
		"sys/module/apparmor/parameters/enabled": "Y\n",
		"sys/kernel/security/apparmor/profiles":  "snap.x (complain) (enforce)\nlocal (enforce)\n",
		"etc/abstractions/base":                  "",
		"parser":                                 "#!/bin/sh\n" + parser,
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Config{
		Parser: filepath.Join(dir, "parser"), Kernel: filepath.Join(dir, "sys"), Rules: filepath.Join(dir, "etc"),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}, dir
}

func TestDefaultIsLoaded(t *testing.T) {
	cfg, dir := host(t, `cat > "$(dirname "$0")/got"; echo "$@" > "$(dirname "$0")/args"`)
	p := Open(t.Context(), cfg)
	if !p.Enabled() || p.Default() != DefaultName {
		t.Fatalf("enabled %v, default %q", p.Enabled(), p.Default())
	}
	got, err := os.ReadFile(filepath.Join(dir, "got"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	for _, want := range []string{"profile berth-default ", "#include <abstractions/base>", "signal (receive) peer=unconfined", "deny mount,", "deny @{PROC}/kcore rwklx", "deny /sys/kernel/** rwklx"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the profile:\n%s", want, text)
		}
	}
	if strings.Contains(text, "tunables") || strings.Count(text, "{") != strings.Count(text, "}") {
		t.Errorf("profile:\n%s", text)
	}
}

func TestWithoutParser(t *testing.T) {
	cfg, _ := host(t, "echo no such thing >&2; exit 1")
	if p := Open(t.Context(), cfg); !p.Enabled() || p.Default() != "" {
		t.Errorf("enabled %v, default %q", p.Enabled(), p.Default())
	}
}

func TestCheck(t *testing.T) {
	cfg, _ := host(t, "cat > /dev/null")
	p := Open(t.Context(), cfg)
	for name, say := range map[string]string{"local": "", "snap.x (complain)": "", "snap.x": "is not loaded", "": "is not loaded", "loc": "is not loaded"} {
		err := p.Check(name)
		if say == "" && err != nil || say != "" && (err == nil || !strings.Contains(err.Error(), say)) {
			t.Errorf("%q: %v, want %q", name, err, say)
		}
	}
	cfg.Kernel = t.TempDir()
	for _, off := range []*Profiles{nil, Open(t.Context(), cfg)} {
		if err := off.Check("local"); off.Enabled() || off.Default() != "" || err == nil {
			t.Errorf("off: %v", err)
		}
	}
}

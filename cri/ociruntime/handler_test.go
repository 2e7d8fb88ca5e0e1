package ociruntime

import (
	"strings"
	"testing"
)

func TestFindHandler(t *testing.T) {
	other := script(t, `echo "runsc version release-20260101"`)
	b, err := FindHandler(t.Context(), "gvisor", other)
	if err != nil || b.Path != other || b.UserNamespaces() == nil || b.RecursiveReadOnly() {
		t.Errorf("%+v, %v", b, err)
	}
	b, err = FindHandler(t.Context(), "fast", script(t, `echo "crun version 1.9.2"`))
	if err != nil || b.Name != "crun" || b.UserNamespaces() != nil || !b.RecursiveReadOnly() {
		t.Errorf("%+v, %v", b, err)
	}
	for path, say := range map[string]string{"/nonesuch": "/nonesuch", script(t, "exit 1"): "exit status 1", script(t, `echo "crun version 1.0"`): "too old"} {
		if _, err := FindHandler(t.Context(), "bad", path); err == nil || !strings.Contains(err.Error(), `runtime handler "bad"`) || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q", path, err, say)
		}
	}
}

func TestUserNamespacesOf(t *testing.T) {
	for _, tc := range []struct {
		b   Binary
		say string
	}{
		{Binary{Name: "crun", Version: "1.8.1"}, ""},
		{Binary{Name: "crun", Version: "1.14"}, ""},
		{Binary{Name: "crun", Version: "1.7.2"}, "crun 1.7.2 is too old to run containers in user namespaces: 1.8 or newer is needed"},
		{Binary{Name: "runc", Version: "1.1.5+ds1"}, ""},
		{Binary{Name: "runc", Version: "1.4.0-rc.1"}, ""},
		{Binary{Name: "kata", Version: "unknown"}, "neither crun nor runc"},
	} {
		if err := tc.b.UserNamespaces(); tc.say == "" && err != nil || tc.say != "" && (err == nil || !strings.Contains(err.Error(), tc.say)) {
			t.Errorf("%+v: %v, want %q", tc.b, err, tc.say)
		}
	}
}

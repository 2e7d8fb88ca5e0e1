package image

import "testing"

// TestUserOfImage sees that only what a container's user can be is told as a
// number: whoever lets numbers other than 0 through must not let root through.
func TestUserOfImage(t *testing.T) {
	for in, want := range map[string]struct {
		uid  int64 // -1: none
		name string
	}{
		"": {-1, ""}, "0": {0, ""}, "00:5": {0, ""}, "1000": {1000, ""}, "web:x": {-1, "web"}, "4294967294": {1<<32 - 2, ""},
		"4294967295": {-1, "4294967295"}, "4294967296": {-1, "4294967296"}, "+5": {-1, "+5"}, "-1": {-1, "-1"}, "0x5": {-1, "0x5"}, "1_0": {-1, "1_0"},
	} {
		uid, name := splitUser(in)
		got := int64(-1)
		if uid != nil {
			got = *uid
		}
		if got != want.uid || name != want.name {
			t.Errorf("%q: %d %q, want %d %q", in, got, name, want.uid, want.name)
		}
	}
}

package ociruntime

import (
	"slices"
	"testing"
)

func TestHoles(t *testing.T) {
	last := []string{"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}
	for _, tc := range []struct {
		b    Binary
		want []string
	}{
		{Binary{Name: "runc", Version: "1.5.2"}, nil},
		{Binary{Name: "runc", Version: "1.4.0-rc.2"}, last},
		{Binary{Name: "runc", Version: "1.4.0-rc.3"}, nil},
		{Binary{Name: "runc", Version: "1.4.0"}, nil},
		{Binary{Name: "runc", Version: "1.3.3"}, nil},
		{Binary{Name: "runc", Version: "1.3.2"}, last},
		{Binary{Name: "runc", Version: "1.2.8"}, nil},
		{Binary{Name: "runc", Version: "1.2.0-rc.2"}, append([]string{"CVE-2024-45310"}, last...)},
		{Binary{Name: "runc", Version: "1.1.15"}, last}, // the branch was never mended
		{Binary{Name: "runc", Version: "1.1.5+ds1"}, append([]string{"CVE-2024-21626", "CVE-2024-45310"}, last...)},
		{Binary{Name: "crun", Version: "1.8.1"}, nil},
		{Binary{Name: "crun", Version: "1.8.1", Features: []string{"+LIBKRUN"}}, []string{"CVE-2025-24965"}},
		{Binary{Name: "crun", Version: "1.4"}, []string{"CVE-2022-27650"}},
		{Binary{Name: "kata", Version: "unknown"}, nil},
		{Binary{Name: "runc", Version: "not a version"}, nil},
	} {
		var got []string
		for _, h := range tc.b.Holes() {
			got = append(got, h.CVE)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s %s %v: %v, want %v", tc.b.Name, tc.b.Version, tc.b.Features, got, tc.want)
		}
	}
	for name, all := range holes {
		for _, h := range all {
			for _, f := range h.Fixed {
				if _, ok := parseRelease(f); !ok {
					t.Errorf("%s of %s: %q cannot be compared", h.CVE, name, f)
				}
			}
		}
	}
}

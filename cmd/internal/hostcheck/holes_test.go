package hostcheck

import (
	"strings"
	"testing"

	"github.com/berthd/berth/cri/ociruntime"
)

func TestHolesOf(t *testing.T) {
	debian := ociruntime.Binary{Name: "runc", Version: "1.1.5+ds1", Path: "/usr/sbin/runc"}
	c := holesOf(debian, "runc (1.1.5+ds1-1+deb12u1)\n  * CVE-2024-21626: several container breakouts")
	for _, want := range []string{"CVE-2025-31133", "CVE-2025-52881", "has mended CVE-2024-21626"} {
		if !strings.Contains(c.Found, want) {
			t.Errorf("%q lacks %q", c.Found, want)
		}
	}
	if c.State != Warning || !strings.Contains(c.Fix, "1.2.8 or 1.3.3") || !strings.Contains(c.Fix, "changelog runc") {
		t.Errorf("%+v", c)
	}
	if c := holesOf(ociruntime.Binary{Name: "runc", Version: "1.5.2"}, ""); c.State != OK || c.Fix != "" {
		t.Errorf("%+v", c)
	}
	if c := holesOf(ociruntime.Binary{Name: "runc", Version: "1.1.13"}, ""); !strings.Contains(c.Fix, "use runc 1.2.8") || strings.Contains(c.Fix, "distribution") {
		t.Errorf("%+v", c)
	}
}

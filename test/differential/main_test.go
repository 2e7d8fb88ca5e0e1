package differential

import (
	"os"
	"testing"

	"k8s.io/kubernetes/pkg/capabilities"
)

func TestMain(m *testing.M) {
	capabilities.Setup(true, 0) // privileged containers are allowed, as every distribution has it
	os.Exit(m.Run())
}
